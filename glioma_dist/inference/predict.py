"""Masks for images of any size: a mask and an overlay for each, and one table of their confluence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from glioma_dist.config import DataConfig, PredictConfig
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.errors import DiskFullError, InputError, MemoryFullError, PartialError, is_out_of_memory, printable
from glioma_dist.evaluation.protocol import Network, cell_probability, load_network
from glioma_dist.files import make_folder
from glioma_dist.inference.images import FAILED, SUMMARY, find_images, output_names
from glioma_dist.inference.results import (
    Failure,
    check_folder,
    describe_failures,
    write_failed,
    write_result,
    write_summary,
)
from glioma_dist.size import Size


def predict(config: PredictConfig, context: DistributedContext) -> list[dict]:
    """Write `<name>.mask.png` (0 and 255, the image's own size), `<name>.overlay.png` and summary.csv to `config.out`.

    Returns the table's rows. An image that cannot be read, or a result that cannot be written, does not stop the
    others: failed.csv lists them, and one PartialError names them at the end (an InputError where no image is done).
    Raises DiskFullError at once.
    """
    found = find_images(config.images)
    paths = found.paths
    names = output_names(paths)
    check_folder(config.out, names)
    if context.is_main and found.not_read:
        print(f"{printable(config.images)}: {found.describe()}", flush=True)
    network, checkpoint = load_network(config.checkpoint, config.scale.spatial_parallel, context)
    group = network.spatial_group
    make_folder(config.out)
    mine = list(zip(paths, names, strict=True))[group.dp_rank :: group.dp_size]
    with ImageReader() as reader:
        rows, failures = _predict_all(mine, network, checkpoint.config.data, config, reader)
    rows = sorted(context.gather_objects(rows), key=lambda row: row["image"])
    failures = sorted(context.gather_objects(failures if group.rank == 0 else []))
    if context.is_main:
        write_summary(config.out / SUMMARY, rows)
        write_failed(config.out / FAILED, failures)
    if failures:
        kind = PartialError if rows else InputError
        ending = kind(describe_failures(failures, len(paths), config.out / FAILED))
        ending.is_shared = True
        raise ending
    return rows


def _predict_all(
    images: list[tuple[Path, str]], network: Network, data: DataConfig, config: PredictConfig, reader: ImageReader
) -> tuple[list[dict], list[Failure]]:
    """Write the results of this process's images, each a path and a name for its results.

    data: what the network was trained with. Returns rows of the table, and what failed.
    """
    input_size = config.input_size or (data.size if data.transform == "resize" else None)
    rows, failures = [], []
    for path, name in images:
        step = "read"
        try:
            image = _read_together(reader, path, network, data.intensity_normalization)
            step = "predicted"
            mask = _mask_of(image, network, input_size, config.threshold)
            step = "written"
            row = write_result(config.out, name, path, image, mask) if network.spatial_group.rank == 0 else None
        except InputError as error:
            if isinstance(error, DiskFullError) or not config.out.is_dir():
                raise
            failures.append(Failure.of(path, step, error))
            continue
        if row is not None:
            rows.append(row)
            print(f"{printable(path)}: {100 * row['confluence']:.1f} % covered", flush=True)
    return rows, failures


def _read_together(reader: ImageReader, path: Path, network: Network, contrast: str) -> np.ndarray:
    """The image with its contrast raised. Raises InputError on all processes that share it, where one cannot read it:
    the others would wait for that one."""
    image, error = None, None
    try:
        decoded = reader.read(path)
        for remark in decoded.remarks() if network.spatial_group.rank == 0 else ():
            print(f"{printable(path)}: {remark}", flush=True)
        image = normalize_intensity(decoded.pixels, contrast)
    except InputError as found:
        error = found
    if network.spatial_group.size > 1:
        num_failed = network.spatial_group.all_reduce(torch.tensor([float(error is not None)], device=network.device))
        if error is None and num_failed.item():
            error = InputError(f"{path}: another process of this launch cannot read it; its line says why")
    if error is not None:
        raise error
    return image


def _mask_of(image: np.ndarray, network: Network, input_size: Size | None, threshold: float) -> np.ndarray:
    """(H, W) uint8 of 0 and 1. image: uint8, its contrast raised.

    Raises InputError where the image does not fit the memory, MemoryFullError where other processes wait for this one.
    """
    height, width = image.shape[:2]
    try:
        probabilities = cell_probability(network, image, input_size, Size(width, height))
        return (probabilities >= threshold).to(torch.uint8).cpu().numpy()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"{width}x{height} pixels do not fit the memory; give a smaller --input-size, or cut it into fields"
        if network.spatial_group.size > 1:
            raise MemoryFullError(f"an image of {what}") from error
    # Outside the handler, whose error would hold on to the tensors.
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    raise InputError(what)
