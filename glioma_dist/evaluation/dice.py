"""Dice's coefficient (Dice 1945) of two masks."""

from __future__ import annotations

from torch import Tensor


def dice(predicted: Tensor, reference: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|) of each pair of masks; two empty masks agree wholly, 1.

    predicted, reference: (..., H, W) bool or 0 and 1. Returns (...) fp64.
    """
    predicted, reference = predicted.bool(), reference.bool()
    overlap = (predicted & reference).sum((-2, -1)).double()
    total = (predicted.sum((-2, -1)) + reference.sum((-2, -1))).double()
    return (2 * overlap / total).where(total > 0, 1.0)
