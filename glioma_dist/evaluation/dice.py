"""Dice's coefficient (Dice 1945) of two masks."""

from __future__ import annotations

import torch
from torch import Tensor

from glioma_dist.limits import IGNORE


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


def class_counts(predicted: Tensor, reference: Tensor, num_mask_channels: int = 1) -> Tensor:
    """`pixel_counts` of each class of cells, of the pixels that are labelled.

    predicted, reference: (..., H, W) uint8, class numbers, the second with IGNORE. num_mask_channels: of the network's
    outputs; 1 is one class. Returns (..., classes, 2) fp64.
    """
    known = reference != IGNORE
    if num_mask_channels == 1:
        return pixel_counts((predicted > 0) & known, (reference > 0) & known)[..., None, :]
    numbers = range(1, num_mask_channels)
    return torch.stack([pixel_counts((predicted == each) & known, reference == each) for each in numbers], dim=-2)


def dice_from(counts: Tensor) -> Tensor:
    """Dice from `pixel_counts`. Returns (...) fp64."""
    overlap, total = counts.unbind(-1)
    return (2 * overlap / total).where(total > 0, 1.0)
