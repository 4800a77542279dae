"""Cellpose's own files: x_seg.npy beside each image, with one number a cell in `masks`. They are read without pickle.

The format: https://cellpose.readthedocs.io/en/latest/outputs.html
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from glioma_dist.data.convert.cells import Segmentation
from glioma_dist.data.convert.labelled import by_name
from glioma_dist.data.convert.plain_pickle import as_array, read_npy_object
from glioma_dist.data.convert.shapes import cells_of_labels
from glioma_dist.data.convert.sources import Source
from glioma_dist.errors import InputError
from glioma_dist.files import read_bytes

MAX_FILE_BYTES = 2**30


def find_cellpose(folder: Path, images: Path | None = None) -> Source:
    """Each x_seg.npy with its image x.tif, x.png or x.jpg. Raises InputError."""
    return by_name(folder, images, "_seg.npy of Cellpose", names_of, read_cells)


def names_of(name: str) -> list[str]:
    """The name, without its ending, of the image of a _seg.npy; none for another file."""
    found = re.fullmatch(r"(?s)(.+)_seg\.npy", name)
    return [found[1]] if found else []


def read_cells(path: Path, height: int, width: int) -> list[Segmentation]:
    """The cells in `masks`. Raises InputError."""
    content = read_npy_object(io.BytesIO(read_bytes(path, MAX_FILE_BYTES)), str(path))
    masks = as_array(content.get("masks")) if isinstance(content, dict) else None
    if masks is None or masks.dtype.kind not in "iu" or (masks.size and masks.min() < 0):
        raise InputError(f"{path}: has no `masks` of whole numbers, 0 for the background; save it again in Cellpose")
    if masks.shape != (height, width):
        shape = "x".join(map(str, masks.shape[::-1]))
        raise InputError(f"{path}: its masks are {shape}, the image {width}x{height}; segment each image as a file")
    return cells_of_labels(masks.astype(masks.dtype.newbyteorder("="), copy=False))
