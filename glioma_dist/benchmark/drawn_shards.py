"""Shards of synthetic images, for measurements on machines that have no data."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.writer import SAMPLES_PER_SHARD, ShardWriter
from glioma_dist.size import Size

NATIVE = Size(2592, 1952)
"""Of the microscope's images."""
DISCS = 60
RADIUS_OF_NATIVE = 50
"""Pixels, in an image of the microscope's size."""


def draw_shards(
    folder: Path, count: int, size: Size = NATIVE, seed: int = 0, samples_per_shard: int = SAMPLES_PER_SHARD
) -> None:
    """Write `count` images of grey noise with discs. As PNG they are about as large as the microscope's images."""
    generator = np.random.default_rng(seed)
    radius = max(3, RADIUS_OF_NATIVE * size.width // NATIVE.width)
    with ShardWriter(folder, "drawn", folder.name, "CC0", samples_per_shard=samples_per_shard) as writer:
        for number in range(count):
            mask = np.zeros((size.height, size.width), np.uint8)
            for x, y in generator.integers(0, (size.width, size.height), (DISCS, 2)).tolist():
                cv2.circle(mask, (x, y), radius, 1, thickness=-1)
            noise = generator.standard_normal(mask.shape, np.float32)
            image = 110 + 30 * mask + 4 * noise + 60 * cv2.GaussianBlur(noise, (0, 0), 2)
            writer.write(Sample(f"drawn-{number:05d}", image.clip(0, 255).astype(np.uint8), mask, {"num_cells": DISCS}))


@contextmanager
def drawn_or_given(data: Path | str, count: int) -> Generator[str]:
    """Context manager for the folder of shards `data`; for "drawn" a temporary folder of `count` images.

    Raises InputError here if the shards cannot be used, and not in each process that is started.
    """
    if str(data) != "drawn":
        ShardReader(data)
        yield str(data)
        return
    with tempfile.TemporaryDirectory() as folder:
        draw_shards(Path(folder) / "train", count)
        yield str(Path(folder) / "train")
