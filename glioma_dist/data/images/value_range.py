"""The two values of an image between which its contrast is stretched."""

from __future__ import annotations

import cv2
import numpy as np

LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5
MOST_COUNTED = 2**24


def find_range(image: np.ndarray) -> tuple[int, int]:
    """The 0.5th and the 99.5th percentile of all values of a uint8 or uint16 image."""
    return range_of(count_values(image, np.iinfo(image.dtype).max + 1))


def range_of(counts: np.ndarray) -> tuple[int, int]:
    """`find_range` of an image in which each value comes so often. counts: (256,) or (65536,)."""
    share = np.cumsum(counts) / counts.sum()
    low, high = np.searchsorted(share, (LOW_PERCENT / 100, HIGH_PERCENT / 100)).tolist()
    return low, high


def count_values(image: np.ndarray, num_values: int) -> np.ndarray:
    """How often each value comes, (num_values,) int64."""
    if image.dtype != np.uint8:
        return np.bincount(image.reshape(-1), minlength=num_values)
    # OpenCV is quicker, but counts in fp32, which is exact up to 2^24.
    rows = image.reshape(len(image), -1)  # no copy where only the rows lie apart
    num_rows = max(1, MOST_COUNTED // rows.shape[1])
    parts = (rows[start : start + num_rows] for start in range(0, len(rows), num_rows))
    counts = (cv2.calcHist([part], [0], None, [num_values], [0, num_values]) for part in parts)
    return sum(part.ravel().astype(np.int64) for part in counts)
