"""The mask: as a PNG of 0 and 255, as a TIFF with 1 bit per pixel, or both with the numbers of the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.colours import class_colour
from glioma_dist.inference.writers.names import is_large
from glioma_dist.inference.writers.png import write_palette_png, write_png
from glioma_dist.inference.writers.tiff import write_tiff


def write_mask(path: Path, segmented: SegmentedImage) -> None:
    """Write 255 where there is a cell and 0 elsewhere, as PNG; for a large image the TIFF of `write_mask_tiff`.

    With several classes: the number of each pixel's class, with a palette by which viewers show a colour for each.
    """
    if is_large(*segmented.shape):
        write_mask_tiff(path, segmented)
    elif segmented.classes:
        colours = [(0, 0, 0), *(class_colour(each, segmented.num_classes) for each in _numbers(segmented))]
        write_palette_png(path, segmented.mask, colours)
    else:
        write_png(path, segmented.mask * 255)


def write_mask_tiff(path: Path, segmented: SegmentedImage) -> None:
    """Write 1 where there is a cell and 0 elsewhere, as TIFF with 1 bit per pixel; with several classes the number of
    each pixel's class, uint8."""
    if segmented.classes:
        write_tiff(path, segmented, segmented.mask_rows, np.uint8)
    else:
        write_tiff(
            path, segmented, lambda start, stop: segmented.mask_rows(start, stop) > 0, np.bool_, compressed=False
        )


def _numbers(segmented: SegmentedImage) -> range:
    return range(1, segmented.num_classes + 1)
