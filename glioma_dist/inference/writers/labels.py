"""The regions as a TIFF of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glioma_dist.inference.components import RowReader
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.tiff import write_tiff


def write_labels(path: Path, segmented: SegmentedImage) -> None:
    """Write the number of each pixel's component, or of its cell where the network separates cells, and 0 where there
    is no cell: uint16, or uint32 where there are more than 65,535."""
    dtype = label_type(len(segmented.regions))
    reader = RowReader(segmented.regions.blocks())
    write_tiff(path, segmented, lambda start, stop: reader.read(start, stop).astype(dtype), dtype)


def label_type(num: int) -> type:
    """Return the smallest type for labels up to `num` that other programs read."""
    return np.uint16 if num < 2**16 else np.uint32
