"""Dice's coefficient (Dice 1945) of two masks."""

from __future__ import annotations

import torch
from torch import Tensor


def dice(predicted: Tensor, reference: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|) of each pair of masks; two empty masks agree wholly, 1.

    predicted, reference: (..., H, W) bool or 0 and 1. Returns (...) fp64.
    """
    return dice_from(pixel_counts(predicted, reference))


def pixel_counts(predicted: Tensor, reference: Tensor) -> Tensor:
    """|A and B| and |A| + |B| of each pair of masks: (..., 2) fp64. They may be summed over the parts of an image."""
    predicted, reference = predicted.bool(), reference.bool()
    overlap = (predicted & reference).sum((-2, -1))
    total = predicted.sum((-2, -1)) + reference.sum((-2, -1))
    return torch.stack([overlap, total], dim=-1).double()


def dice_from(counts: Tensor) -> Tensor:
    """Dice from `pixel_counts`. Returns (...) fp64."""
    overlap, total = counts.unbind(-1)
    return (2 * overlap / total).where(total > 0, 1.0)
