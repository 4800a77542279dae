"""Losses: one number an image, in fp32, so that a mean over the global batch is the same however it is split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

SMOOTH = 1.0
"""Pixels added above and below the fraction, so that an image without cells has a loss and a gradient."""


def segmentation_loss(
    kind: Literal["dice", "bce", "dice+bce"],
    logits: Tensor,
    masks: Tensor,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """Loss of each image. logits: (B, 1, H, W); masks: (B, H, W) of 0 and 1. Returns (B,) fp32,
    or fp64 where the logits are. total: makes of sums over a part of each image those over the whole
    (`SpatialGroup.total`).

    dice: 1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1), p = sigmoid(logit) (V-Net, Milletari et al. 2016, arXiv
    1606.04797, section 3, with plain sums below). bce: the mean of the binary cross-entropy over the pixels.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    logits, masks = logits.squeeze(1).to(exact), masks.to(exact)
    loss = logits.new_zeros(len(logits))
    if "dice" in kind:
        shares = logits.sigmoid()
        sums = torch.stack([(shares * masks).sum((1, 2)), shares.sum((1, 2)) + masks.sum((1, 2))])
        overlap, both = total(sums)
        loss = loss + 1 - (2 * overlap + SMOOTH) / (both + SMOOTH)
    if "bce" in kind:
        entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        sums = torch.stack([entropy.sum((1, 2)), torch.full_like(loss, masks[0].numel())])
        entropy_sum, num_pixels = total(sums)
        loss = loss + entropy_sum / num_pixels
    return loss
