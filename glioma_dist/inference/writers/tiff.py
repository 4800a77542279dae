"""TIFF files with the pixel size as ImageJ writes it, in strips or, for large images, in tiles, row by row."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import MARK, is_large

TILE = 512
"""Side of a tile, in pixels."""
STRIP_BYTES = 2**18
"""Of a strip before it is compressed."""
LARGEST_CLASSIC = 2**32 - 2**25
"""Bytes of pixels that a TIFF of 32-bit offsets has room for, beside its header."""


def write_tiff(
    path: Path, segmented: SegmentedImage, rows: Callable[[int, int], np.ndarray], dtype: type, compressed: bool = True
) -> None:
    """Write one grey image of the size of `segmented`.

    rows: its rows from a first to before a last one, of type `dtype`; they are asked for from the top, each once.
    compressed: with Deflate. ImageJ reads images of 1 bit only without; those in tiles it does not read in any case.
    """
    height, width = segmented.shape
    in_tiles = is_large(height, width)
    if in_tiles:
        layout: dict[str, Any] = {"tile": (TILE, TILE)}
        data = _tiles(rows, height, width)
    elif compressed:
        step = min(height, max(1, STRIP_BYTES // (width * np.dtype(dtype).itemsize)))
        layout = {"rowsperstrip": step}
        data = _strips(rows, height, step)
    else:
        # In one strip: ImageJ reads rows of 1 bit on from the first strip's place.
        layout, data = {"rowsperstrip": height}, rows(0, height)
    lines = ["ImageJ=1.54f", *(["unit=micron"] if segmented.metadata.pixel_size_um else []), f"Software={MARK}"]
    pixels_per_um = 1 / segmented.metadata.pixel_size_um if segmented.metadata.pixel_size_um else 1.0
    with tifffile.TiffWriter(
        path, byteorder="<", bigtiff=height * width * np.dtype(dtype).itemsize > LARGEST_CLASSIC
    ) as file:
        file.write(
            data,
            shape=(height, width),
            dtype=dtype,
            photometric="minisblack",
            compression="zlib" if compressed or in_tiles else None,
            resolution=(pixels_per_um, pixels_per_um),
            resolutionunit="NONE",
            # In this tag, because the reader's tags before it are short: the mark stands in the first bytes.
            description="\n".join(lines) + "\n",
            metadata=None,
            software=False,
            **layout,
        )


def _strips(rows: Callable[[int, int], np.ndarray], height: int, step: int) -> Iterator[bytes]:
    """Compressed strips of `step` rows."""
    for start in range(0, height, step):
        strip = np.asarray(rows(start, min(height, start + step)))
        yield zlib.compress(strip.astype(strip.dtype.newbyteorder("<")).tobytes())


def _tiles(rows: Callable[[int, int], np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
    """Tiles from the top left, row by row; what lies beyond the image is 0."""
    for start in range(0, height, TILE):
        band = np.asarray(rows(start, min(height, start + TILE)))
        padded = np.zeros((TILE, -(-width // TILE) * TILE), band.dtype)
        padded[: len(band), :width] = band
        for left in range(0, width, TILE):
            yield np.ascontiguousarray(padded[:, left : left + TILE])
