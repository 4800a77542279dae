"""Masks for images of any size: a mask and an overlay for each, and one table of their confluence."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from glioma_dist.config import DataConfig, PredictConfig
from glioma_dist.config.file import checked
from glioma_dist.config.paths import Url
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.remote_checkpoint import fetch_checkpoint
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.numerics import numerics
from glioma_dist.distributed.own_context import given_or_own
from glioma_dist.errors import DiskFullError, InputError, printable
from glioma_dist.evaluation.protocol import Network, load_network
from glioma_dist.inference.images import FAILED, SUMMARY, find_images, output_names
from glioma_dist.inference.reading import read_together
from glioma_dist.inference.result_folder import Results, open_results
from glioma_dist.inference.results import Failure, PredictedImage, PredictionResult, describe_failures
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.segmenting import segment


def predict(config: PredictConfig, context: DistributedContext | None = None) -> PredictionResult:
    """Predict cell masks for images of any size.

    Writes `<name>.mask.png` (0 and 255, the image's own size), `<name>.overlay.png` and summary.csv to `config.out`.
    Starts no processes: it computes in this one, and in all processes of the launch where the script was started by
    `accelerate launch`.

    Args:
        config: the checkpoint, the images and the folder for the results. Paths and sizes may be given as text.
        context: rank and device of this process; by default it is made here, and closed at the end.

    Returns what was written, the same on all processes. An image that cannot be read, or a result that cannot be
    written, does not stop the others: `failed` names it, and so does failed.csv.

    Raises:
        InputError: the checkpoint, the folder or a setting cannot be used, or no image is done.
        DiskFullError: at once, where the disk is full.
        MemoryFullError: an image does not fit the memory of the processes that share it.
    """
    config = checked(PredictConfig, config)
    with given_or_own(context) as here, numerics():
        return _predict(config, here)


def _predict(config: PredictConfig, context: DistributedContext) -> PredictionResult:
    found = find_images(config.images)
    paths = found.paths
    names = output_names(paths)
    results = open_results(config.out)
    results.check(names)
    network, checkpoint = load_network(fetch_checkpoint(config.checkpoint), config.scale.spatial_parallel, context)
    if context.is_main and found.not_read:
        print(f"{printable(config.images)}: {found.describe()}", flush=True)
    group = network.spatial_group
    mine = list(zip(paths, names, strict=True))[group.dp_rank :: group.dp_size]
    with ImageReader() as reader, results.opened():
        done, failures = _predict_all(mine, network, checkpoint.config.data, config, reader, results)
        done = sorted(context.gather_objects(done), key=lambda each: printable(each.image))
        failures = sorted(context.gather_objects(failures if group.rank == 0 else []))
        if context.is_main:
            results.write_tables(done, failures)
    if not done:
        ending = InputError(describe_failures(failures, len(paths), config.out / FAILED))
        ending.is_shared = True
        raise ending
    return PredictionResult(config.out, tuple(done), tuple(failures), config.out / SUMMARY)


def _predict_all(
    images: list[tuple[Path | Url, str]],
    network: Network,
    data: DataConfig,
    config: PredictConfig,
    reader: ImageReader,
    results: Results,
) -> tuple[list[PredictedImage], list[Failure]]:
    """Write the results of this process's images, each a path and a name for its results.

    data: what the network was trained with. Returns what is done, and what failed.
    """
    input_size = config.input_size or (data.size if data.transform == "resize" else None)
    if input_size:
        network.fit(input_size)  # refused at once, and not for each image
    done: list[PredictedImage] = []
    failures: list[Failure] = []
    told: set[str] = set()

    def say(path: Path | Url, kind: str, text: str) -> None:
        """The way of an image is said once of each kind."""
        if network.spatial_group.rank == 0 and (kind == "progress" or kind not in told):
            told.add(kind)
            print(f"{printable(path)}: {text}", flush=True)

    for path, name in images:
        step = "read"
        try:
            pixels, metadata = read_together(
                reader, path, network, data.intensity_normalization, config.memory_bytes, results.folder
            )
            step = "predicted"
            probabilities, way = segment(
                pixels, network, input_size, config.memory_bytes, results.folder, partial(say, path)
            )
            segmented = SegmentedImage(path, pixels, probabilities, config.threshold, metadata, way)
            step = "written"
            written = results.write(name, segmented) if network.spatial_group.rank == 0 else None
        except InputError as error:
            if isinstance(error, DiskFullError) or results.is_gone(path, error):
                raise
            failures.append(Failure.of(path, step, error))
            continue
        if written is not None:
            done.append(written)
            print(f"{printable(path)}: {100 * written.confluence:.1f} % covered", flush=True)
    return done, failures
