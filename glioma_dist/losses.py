"""Losses: one number an image, in fp32, so that a mean over the global batch is the same however it is split.

A loss is a function of logits (B, H, W) and masks (B, H, W) of 0 and 1, both of one float type, fp32 or wider, that
returns (B,): the loss of each image, from that image alone. One that is a function of sums over an image takes a third
argument, `total`, too: it makes of sums over a part of each image, (N, B), those over the whole
(`SpatialGroup.total`), and so the loss can be computed where several processes share an image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from glioma_dist.errors import InputError, noting
from glioma_dist.registry import losses

SMOOTH = 1.0
"""Pixels added above and below the fraction, so that an image without cells has a loss and a gradient."""
Total = Callable[[Tensor], Tensor]


def segmentation_loss(names: str, logits: Tensor, masks: Tensor, total: Total = lambda sums: sums) -> Tensor:
    """Loss of each image. names: of a loss, or of several, joined by `+`, that are added. logits: (B, 1, H, W); masks:
    (B, H, W) of 0 and 1. Returns (B,) fp32, or fp64 where the logits are.

    Raises InputError where a loss is not known or gives something else.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    logits, masks = logits.squeeze(1).to(exact), masks.to(exact)
    loss = logits.new_zeros(len(logits))
    for name in names.split("+"):
        function, takes_total = _loss(name)
        with noting(f"in the loss {losses.find(name).described}"):
            own = function(logits, masks, total=total) if takes_total else function(logits, masks)
        if not isinstance(own, Tensor) or own.shape != loss.shape:
            shape = tuple(own.shape) if isinstance(own, Tensor) else type(own).__name__
            raise InputError(
                f"loss {losses.find(name).described}: gave {shape} for {len(loss)} images; return one number an image, "
                f"a tensor ({len(loss)},)"
            )
        loss = loss + own
    return loss


def check_splittable(names: str, num_processes: int) -> None:
    """Raises InputError where `num_processes` share an image and a loss cannot be computed from sums over its parts."""
    whole = [name for name in names.split("+") if not _loss(name)[1]]
    if num_processes > 1 and whole:
        raise InputError(
            f"--scale.spatial-parallel {num_processes}: the loss {losses.find(whole[0]).described} takes no `total`, "
            "and so needs whole images; give 1, or another --loss (docs/encoders.md, Add a loss)"
        )


def soft_dice(logits: Tensor, masks: Tensor, total: Total) -> Tensor:
    """1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1), p = sigmoid(logit) (V-Net, Milletari et al. 2016, arXiv 1606.04797,
    section 3, with plain sums below)."""
    probabilities = logits.sigmoid()
    sums = torch.stack([(probabilities * masks).sum((1, 2)), probabilities.sum((1, 2)) + masks.sum((1, 2))])
    overlap, both = total(sums)
    return 1 - (2 * overlap + SMOOTH) / (both + SMOOTH)


def cross_entropy(logits: Tensor, masks: Tensor, total: Total) -> Tensor:
    """The mean of the binary cross-entropy over the pixels."""
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    sums = torch.stack([entropy.sum((1, 2)), logits.new_full((len(logits),), masks[0].numel())])
    entropy_sum, num_pixels = total(sums)
    return entropy_sum / num_pixels


def _loss(name: str) -> tuple[Callable[..., Tensor], bool]:
    """A loss by name, and whether it takes `total`."""
    function = losses.load(name, "--loss")
    if not callable(function):
        raise InputError(f"loss {losses.find(name).described}: is a {type(function).__name__} and no function")
    return function, _takes_total(function)


@lru_cache
def _takes_total(function: Callable[..., Tensor]) -> bool:
    return "total" in inspect.signature(function).parameters
