"""Losses that are means over pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from glioma_dist.losses.parts import Parts

Total = Callable[[Tensor], Tensor]


def mean_of_valid(errors: Tensor, valid: Tensor, total: Total) -> Tensor:
    """The mean over each image's labelled pixels; 0 where there is none. errors, valid: (B, H, W). Returns (B,)."""
    sums = torch.stack([errors.masked_fill(~valid, 0).sum((1, 2)), valid.sum((1, 2)).to(errors.dtype)])
    error_sum, num_pixels = total(sums)
    return error_sum / num_pixels.clamp(min=1)


FOCUS, ALPHA = 2.0, 0.25
"""gamma and alpha of the focal loss, the paper's best (Lin et al. 2017, table 1b)."""
BOUNDARY_WEIGHT, BOUNDARY_SIGMA_PX = 10.0, 5.0
"""w0 and sigma of the U-Net's paper (Ronneberger et al. 2015, section 3)."""
REACH_PX = 20
"""How far a boundary weighs, along rows and columns: four sigma, where 0.003 of w0 is left."""


def binary_cross_entropy(logits: Tensor, masks: Tensor, valid: Tensor, total: Total) -> Tensor:
    """The mean of the binary cross-entropy over the pixels."""
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return mean_of_valid(entropy, valid, total)


def cross_entropy(logits: Tensor, masks: Tensor, valid: Tensor, total: Total) -> Tensor:
    """The mean over the pixels of -log of the softmax of the pixel's class."""
    return mean_of_valid(functional.cross_entropy(logits, masks, reduction="none"), valid, total)


def focal(logits: Tensor, masks: Tensor, valid: Tensor, total: Total) -> Tensor:
    """The mean over the pixels of -alpha_t (1 - p_t)^2 log(p_t), alpha_t 0.25 on cells and 0.75 elsewhere, p_t the
    probability of the pixel's own class (Lin et al. 2017, arXiv 1708.02002, equation 5). Of several classes, p_t is a
    softmax's, and there is no alpha."""
    if logits.ndim == 3:
        entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        entropy = entropy * (ALPHA * masks + (1 - ALPHA) * (1 - masks))
        # 1 - p_t by a sigmoid of its own, which loses no digits where p_t is near to 1.
        missing = ((1 - 2 * masks) * logits).sigmoid()
    else:
        entropy = functional.cross_entropy(logits, masks, reduction="none")
        missing = 1 - (-entropy).exp()
    return mean_of_valid(missing**FOCUS * entropy, valid, total)


def boundary_cross_entropy(logits: Tensor, masks: Tensor, valid: Tensor, group: Parts) -> Tensor:
    """The binary cross-entropy of each pixel times w, summed and divided by the sum of w, with
    w = 1 + 10 exp(-d^2 / (2 * 5^2)), d the distance in pixels to the nearest pixel at a boundary of the mask: after the
    U-Net's paper (Ronneberger et al. 2015, arXiv 1505.04597, equation 2), whose weights need a number for each cell. Of
    several classes the cross-entropy of the softmax, and all boundaries between them."""
    several = logits.ndim == 4
    entropy = (
        functional.cross_entropy(logits, masks, reduction="none")
        if several
        else functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    )
    with torch.no_grad():
        weights = group.own(boundary_weights(group.whole(masks), logits.dtype)).masked_fill(~valid, 0)
    sums = torch.stack([(weights * entropy).sum((1, 2)), weights.sum((1, 2))])
    entropy_sum, weight_sum = group.total(sums)
    return entropy_sum / weight_sum.clamp(min=1)


def boundary_weights(masks: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight of each pixel of masks (B, H, W): 1 to 11.

    exp(-(x^2 + y^2)) is a product of one factor a row and one a column. So the largest over all pixels at a boundary is
    the largest along the columns of the largest along the rows.
    """
    near = at_boundary(masks).to(dtype)
    for dim in (1, 2):
        largest = near.clone()
        for distance in range(1, min(REACH_PX, masks.shape[dim] - 1) + 1):
            factor = math.exp(-(distance**2) / (2 * BOUNDARY_SIGMA_PX**2))
            size = masks.shape[dim] - distance
            for to, start in ((0, distance), (distance, 0)):
                part = largest.narrow(dim, to, size)
                part.copy_(torch.maximum(part, near.narrow(dim, start, size) * factor))
        near = largest
    return 1 + BOUNDARY_WEIGHT * near


def at_boundary(masks: Tensor) -> Tensor:
    """Pixels with another value above, below, left or right of them. masks: (B, H, W). Returns bool (B, H, W)."""
    rows, columns = masks[:, 1:] != masks[:, :-1], masks[:, :, 1:] != masks[:, :, :-1]
    pad = functional.pad
    return pad(rows, (0, 0, 1, 0)) | pad(rows, (0, 0, 0, 1)) | pad(columns, (1, 0)) | pad(columns, (0, 1))
