"""Masks for images of any size: results for each picture of each file, and one table of their confluence."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from glioma_dist.config import PredictConfig
from glioma_dist.config.file import checked
from glioma_dist.config.places import Places
from glioma_dist.data.image_statistics import TrainingStatistics
from glioma_dist.data.images.choice import Choice
from glioma_dist.data.images.microscope import format_of, require_library
from glioma_dist.data.images.ome_zarr import is_zarr
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.remote_checkpoint import fetch_checkpoint
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.numerics import numerics
from glioma_dist.distributed.own_context import given_or_own
from glioma_dist.distributed.own_modes import own_modes
from glioma_dist.errors import DiskFullError, InputError, Interrupted, RunError, StopRequested, printable
from glioma_dist.evaluation.network import Network, load_network
from glioma_dist.extras import require
from glioma_dist.files import check_new_folder
from glioma_dist.inference.images import FAILED, SUMMARY, find_images
from glioma_dist.inference.overlap import Outcome, WriteBehind, read_ahead
from glioma_dist.inference.pictures import Picture, find_pictures
from glioma_dist.inference.progress import PredictionProgress
from glioma_dist.inference.quality import quality_flags
from glioma_dist.inference.reading import PictureReader, ReadImage, read_together
from glioma_dist.inference.record import (
    Place,
    Record,
    RecordWriter,
    describe_checkpoint,
    digest_of,
    make_entry,
    settings_of,
)
from glioma_dist.inference.result_folder import Results, open_results
from glioma_dist.inference.results import Failure, PredictedImage, PredictionResult, describe_failures
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.segmenting import segment
from glioma_dist.inference.work import Work, find_work, rows_of_others, source_of
from glioma_dist.model.checkpoint import STATISTICS, Checkpoint


@own_modes()
def predict(config: PredictConfig, context: DistributedContext | None = None) -> PredictionResult:
    """Segment images of any size, and each plane of stacks and time-lapses.

    Writes the formats of `config.write`, summary.csv and predict.json to `config.out`; by default `<name>.mask.png` (0
    and 255, the image's own size) and `<name>.overlay.png`. A picture whose results are there already, made from the
    same file with the same settings, is skipped. Starts no processes: it computes in this one, and in all processes of
    the launch where the script was started by `accelerate launch`.

    Args:
        config: the checkpoint, the images and the folder for the results. Paths and sizes may be given as text.
        context: rank and device of this process; by default it is made here, and closed at the end.

    Returns what is there, the same on all processes. An image that cannot be read, or a result that cannot be
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
    if any(isinstance(path, Path) and path.is_dir() and is_zarr(path) for path in found.paths):
        require("formats", f"--images {config.images}: to read OME-Zarr", ("zarr",))
    for kind, path in {format_of(path): path for path in found.paths if isinstance(path, Path)}.items():
        if kind is not None:
            require_library(path, f"--images {config.images}: to read {kind.name}")
    results, place = open_results(config.out, config.write), Place(config.out)
    given = (fetch_checkpoint(config.checkpoint), config.scale.spatial_parallel, context, config.raw_weights)
    network, checkpoint = load_network(*given)
    settings = settings_of(config, checkpoint)

    def plan() -> Work:
        if isinstance(config.out, Path):
            check_new_folder("--out", config.out)
        choice = Choice(config.channel, Places.parse("--time", config.time), Places.parse("--page", config.page))
        pictures = find_pictures(found.paths, choice)
        work = find_work(pictures, place, settings, config.write, config.redo)
        results.check([picture.name for picture in work.pictures])
        work.record.checkpoints[settings["checkpoint"]] = describe_checkpoint(config, checkpoint)
        return work

    work = _made_by_first(context, plan)
    for line in ([found.describe()] if found.not_read else []) if context.is_main else ():
        print(f"{printable(config.images)}: {line}", flush=True)
    for line in work.notes if context.is_main else ():
        print(line, flush=True)
    group = network.spatial_group
    mine = work.pictures[group.dp_rank :: group.dp_size]
    writer = RecordWriter(place, work.record if context.is_main else Record(), context.rank)
    with results.opened():
        if context.is_main:
            place.remove_leftovers()
        job = _Job(config, checkpoint, network, results, writer, digest_of(settings), work.kept)
        done, failures = job.do(mine, f" (of this process; {group.dp_size} share them)" if group.dp_size > 1 else "")
        done = dict(context.gather_objects(list(done.items())))
        failures = sorted(context.gather_objects(failures if group.rank == 0 else []))
        entries = dict(context.gather_objects(list(writer.added.items())))
        if context.is_main:
            own = work.kept | work.done | done
            failed = {picture.name for picture in work.pictures} - own.keys()
            with place.locked():
                complete = _write_record(place, writer, entries, failed, settings)
                others = rows_of_others(complete, own.keys() | failed, digest_of(settings), place)
                results.write_tables(_in_order(own | others), failures)
    done = work.done | done
    if not done:
        ending = InputError(describe_failures(failures, work.num_pictures, config.out / FAILED))
        ending.is_shared = True
        raise ending
    return PredictionResult(config.out, tuple(_in_order(done)), tuple(failures), config.out / SUMMARY)


def _made_by_first(context: DistributedContext, make: Callable[[], Work]) -> Work:
    """What the first process makes, on all of them: files may come and go while they look. Raises on all what it
    raises."""
    made: list[Work] = []
    problem: RunError | None = None
    if context.is_main:
        try:
            made.append(make())
        except RunError as error:
            problem = error
    context.agree(problem)
    return context.gather_objects(made)[0]


def _in_order(images: dict[str, PredictedImage]) -> list[PredictedImage]:
    """By file, and the planes of a file by their numbers."""

    def key(item: tuple[str, PredictedImage]) -> tuple[str, list[Any]]:
        name, image = item
        return printable(image.image), [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    return [image for _, image in sorted(images.items(), key=key)]


def _write_record(
    place: Place, writer: RecordWriter, entries: dict[str, Any], failed: set[str], settings: dict[str, Any]
) -> Record:
    """The record of all processes, and of another run that has written to the folder meanwhile. The settings and the
    checkpoint of the table are the last ones of it."""
    complete = writer.with_others()
    complete.images |= entries
    complete.images = {name: entry for name, entry in complete.images.items() if name not in failed}
    used = {entry.get("settings") for entry in complete.images.values()}
    told = {name: each for name, each in complete.settings.items() if name in used and name != digest_of(settings)}
    complete.settings = told | {digest_of(settings): settings}
    identities = list(dict.fromkeys(str(each.get("checkpoint")) for each in reversed(complete.settings.values())))
    checkpoints = complete.checkpoints
    complete.checkpoints = {name: checkpoints[name] for name in reversed(identities) if name in checkpoints}
    place.write(complete)
    place.remove(place.process_files())
    return complete


class _Job:
    """This process's share of the pictures: while one is segmented, the next is read and the one before written.

    checkpoint: of the network. settings: the digest of what is recorded. kept: results of earlier runs that are still
    true, by name.
    """

    def __init__(
        self,
        config: PredictConfig,
        checkpoint: Checkpoint,
        network: Network,
        results: Results,
        record: RecordWriter,
        settings: str,
        kept: dict[str, PredictedImage],
    ) -> None:
        data = checkpoint.config.data
        self._config, self._network, self._results, self._record = config, network, results, record
        self._contrast, self._settings, self._kept = data.intensity_normalization, settings, kept
        self._classes = checkpoint.config.model.classes
        self._training = TrainingStatistics.from_dict(checkpoint.metadata.get(STATISTICS))
        self._input_size = config.input_size or (data.size if data.transform == "resize" else None)
        self._done: dict[str, PredictedImage] = {}
        self._failures: list[Failure] = []
        self._told: set[str] = set()

    def do(self, pictures: list[Picture], others: str = "") -> tuple[dict[str, PredictedImage], list[Failure]]:
        """Write the results of pictures. Returns what is done, by the names of the results, and what failed."""
        if self._input_size:
            self._network.fit(self._input_size)  # refused at once, and not for each image
        group = self._network.spatial_group
        progress = PredictionProgress(len(pictures), group.rank != 0, others)
        in_threads = group.size == 1  # processes that share a picture speak of it in the same order
        try:
            with (
                ImageReader() as decoder,
                PictureReader(decoder, progress.say) as reader,
                progress,
                WriteBehind(in_threads) as writing,
                closing(read_ahead(pictures, lambda picture: self._read(reader, picture), in_threads)) as read,
            ):
                for outcome in read:
                    for written in self._segment(outcome, writing, progress):
                        self._note(written, progress)
                for written in writing.finish():
                    self._note(written, progress)
                reader.tell_remarks()
        except Interrupted as interrupted:
            done = f"{len(self._done)} of {len(pictures)} images done"
            raise StopRequested(f"{interrupted.request}, {done}. Run the same command to continue.") from interrupted
        finally:
            with suppress(InputError):  # what ends the run is told by it; the record only saves time
                self._record.flush()
        return self._done, self._failures

    def _read(self, reader: PictureReader, picture: Picture) -> ReadImage:
        folder, memory = self._results.folder, self._config.memory_bytes
        return read_together(reader, picture, self._network, self._contrast, folder, memory)

    def _segment(
        self,
        outcome: Outcome[Picture, ReadImage],
        writing: WriteBehind[Picture, PredictedImage],
        progress: PredictionProgress,
    ) -> list[Outcome[Picture, PredictedImage]]:
        """Segment a picture and begin to write its results. Returns what became of those before."""
        picture, group, config = outcome.item, self._network.spatial_group, self._config
        if outcome.result is None:
            self._fail(picture, "read", outcome.error or InputError("cannot be read"), progress)
            return []
        pixels, metadata = outcome.result

        def say(kind: str, text: str) -> None:
            """Print how a picture is computed: once for each way, and its progress."""
            if kind == "progress" or kind not in self._told:
                self._told.add(kind)
                progress.say(f"{printable(picture.label)}: {text}")

        try:
            found = segment(pixels, self._network, self._input_size, config.memory_bytes, self._results.folder, say)
        except InputError as error:
            self._fail(picture, "predicted", error, progress)
            return []
        if group.rank != 0:
            progress.finished()
            return []

        def write() -> PredictedImage:
            flags = quality_flags(pixels, self._training)
            of = (picture.path, pixels, found.maps, config.threshold, metadata, found.way, flags)
            segmented = SegmentedImage(*of, outputs=self._network.outputs, classes=self._classes)
            return self._results.write(picture.name, segmented)

        return writing.put(picture, write)

    def _note(self, outcome: Outcome[Picture, PredictedImage], progress: PredictionProgress) -> None:
        """A picture's results are written, or cannot be."""
        picture, written = outcome.item, outcome.result
        if written is None:
            self._fail(picture, "written", outcome.error or InputError("cannot be written"), progress)
            return
        if picture.name in self._kept:  # in other formats, by an earlier run
            written = replace(written, files=self._kept[picture.name].files | written.files)
        kinds = tuple(written.files)
        entry = make_entry(written, source_of(picture), self._settings, kinds, self._config.out)
        self._record.add(picture.name, entry)
        self._done[picture.name] = written
        progress.finished(f"{printable(picture.label)}: confluence {100 * written.confluence:.1f} %")

    def _fail(self, picture: Picture, step: str, error: InputError, progress: PredictionProgress) -> None:
        """Raises an error that concerns all pictures to come."""
        if isinstance(error, DiskFullError) or self._results.is_gone(picture.path, error):
            raise error
        self._failures.append(Failure.of(picture.label, step, error))
        progress.finished()
