"""The Lovász extension of the Jaccard loss, which sorts the pixels of an image by their errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from glioma_dist.losses.parts import Parts


def lovasz(logits: Tensor, masks: Tensor, valid: Tensor, group: Parts) -> Tensor:
    """Lovász loss (Berman et al. 2018, arXiv 1705.08790): of one class on the errors of a hinge (section 3.1), of
    several on those of the softmax (section 3.2), the mean over the classes that the image has, the background among
    them. Pixels are sorted over the whole image, so each process of a group sorts all of them."""
    logits, masks, valid = group.whole(logits), group.whole(masks), group.whole(valid.to(torch.uint8)) > 0
    if logits.ndim == 3:
        errors = (1 - logits * (2 * masks - 1)).relu()
        return jaccard_extension(errors.masked_fill(~valid, 0), (masks > 0) & valid)
    reference = functional.one_hot(masks, logits.shape[1]).movedim(-1, 1) > 0
    errors = (reference.to(logits.dtype) - logits.softmax(dim=1)).abs().masked_fill(~valid[:, None], 0)
    reference = reference & valid[:, None]
    present = reference.flatten(2).any(dim=2)
    return (jaccard_extension(errors, reference) * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


def jaccard_extension(errors: Tensor, reference: Tensor) -> Tensor:
    """The sum of the errors, each times how much the Jaccard loss grows if its pixel becomes wrong, too, after all of
    larger errors.

    errors: (…, H, W) from 0 up, 0 where a pixel is not labelled: such a pixel adds nothing. reference: bool of the same
    shape. Returns (…).
    """
    errors, order = errors.flatten(-2).sort(dim=-1, descending=True, stable=True)
    is_reference = reference.flatten(-2).gather(-1, order)
    found = is_reference.cumsum(dim=-1)
    left = found[..., -1:] - found  # the intersection, once so many pixels are wrong
    union = left + torch.arange(1, errors.shape[-1] + 1, device=errors.device)
    # A pixel of the reference takes 1 from the intersection, another adds 1 to the union. The difference of two losses
    # would have few digits in fp32: in an image of 5 megapixels gradients were wrong by a tenth.
    before = left.to(errors.dtype) / (union - 1).clamp(min=1).to(errors.dtype)
    growth = before.masked_fill(is_reference, 1) / union.to(errors.dtype)
    growth[..., 0] += found[..., -1] == 0  # without a reference the loss is 1 from the first wrong pixel on
    return (errors * growth).sum(dim=-1)
