"""Losses that are means over pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Total = Callable[[Tensor], Tensor]


def mean_of_valid(errors: Tensor, valid: Tensor, total: Total) -> Tensor:
    """The mean over each image's labelled pixels; 0 where there is none. errors, valid: (B, H, W). Returns (B,)."""
    sums = torch.stack([errors.masked_fill(~valid, 0).sum((1, 2)), valid.sum((1, 2)).to(errors.dtype)])
    error_sum, num_pixels = total(sums)
    return error_sum / num_pixels.clamp(min=1)


def binary_cross_entropy(logits: Tensor, masks: Tensor, valid: Tensor, total: Total) -> Tensor:
    """The mean of the binary cross-entropy over the pixels."""
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return mean_of_valid(entropy, valid, total)


def cross_entropy(logits: Tensor, masks: Tensor, valid: Tensor, total: Total) -> Tensor:
    """The mean over the pixels of -log of the softmax of the pixel's class."""
    return mean_of_valid(functional.cross_entropy(logits, masks, reduction="none"), valid, total)
