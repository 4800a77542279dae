"""The probabilities as a TIFF."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.tiff import write_tiff


def write_probability(path: Path, segmented: SegmentedImage) -> None:
    """Write the probabilities as float32: all bits of them, so that a threshold gives predict's own mask. ImageJ shows
    them and thresholds them as they are; it reads no predictor, so Deflate is without one."""
    write_tiff(path, segmented, segmented.probability_rows, np.float32)
