"""The mask: as a PNG of 0 and 255, and as a TIFF with 1 bit per pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import is_large
from glioma_dist.inference.writers.png import write_png
from glioma_dist.inference.writers.tiff import write_tiff


def write_mask(path: Path, segmented: SegmentedImage) -> None:
    """Write 255 where there is a cell and 0 elsewhere, as PNG; for a large image the TIFF of `write_mask_tiff`."""
    if is_large(*segmented.shape):
        write_mask_tiff(path, segmented)
    else:
        write_png(path, segmented.mask * 255)


def write_mask_tiff(path: Path, segmented: SegmentedImage) -> None:
    """Write 1 where there is a cell and 0 elsewhere, as TIFF with 1 bit per pixel."""
    write_tiff(path, segmented, lambda start, stop: segmented.mask_rows(start, stop) > 0, np.bool_, compressed=False)
