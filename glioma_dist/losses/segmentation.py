"""Losses: one number an image, in fp32, so that a mean over the global batch is the same however it is split.

A loss is a function of logits and masks that returns (B,): the loss of each image, from that image alone.

- One class: logits (B, H, W); masks (B, H, W) of 0 and 1; both of one float type, fp32 or wider.
- K classes with the background: logits (B, K, H, W), fp32 or wider; masks (B, H, W) int64 of 0 to K - 1.

It gets more where it names it as an argument:

- `valid`: (B, H, W) bool, False where nobody labelled the pixel. There the mask is 0. A loss that does not take it is
  not a number for an image with such pixels, so that no unlabelled pixel is silently learned as background.
- `total`: makes of sums over a part of each image, (N, B), those over the whole.
- `group`: a `Parts`, with `total`; and `whole` and `own`, for what is no function of sums over an image.

A loss that takes `total` or `group` can be computed where several processes share an image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from glioma_dist.config import TrainConfig
from glioma_dist.errors import InputError, noting
from glioma_dist.limits import IGNORE
from glioma_dist.loss_terms import terms_of
from glioma_dist.losses.parts import WHOLE, Parts
from glioma_dist.losses.targets import target_loss
from glioma_dist.model.outputs import Outputs
from glioma_dist.registry import losses

ONE_CLASS = Outputs()


def segmentation_loss(
    names: str,
    logits: Tensor,
    masks: Tensor,
    group: Parts = WHOLE,
    outputs: Outputs = ONE_CLASS,
    target_weight: float = 1.0,
) -> Tensor:
    """Loss of each image.

    Args:
        names: of a loss, or of several, joined by `+`, that are added, as `dice+0.5*bce`. They are of the mask.
        logits: (B, outputs.num_outputs, H, W).
        masks: uint8 (B, H, W), or (B, 2, H, W) with a second target, as a `Batch` has them.
        group: the processes that share the images; H is then the rows of this one.
        outputs: what the channels of the logits are.
        target_weight: of the second target's loss (`target_loss`), which is added.

    Returns (B,) fp32, or fp64 where the logits are. Raises InputError where a loss is not known or gives something
    else.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    mask_logits, reference = outputs.mask_logits(logits).to(exact), outputs.mask(masks)
    valid = reference != IGNORE
    reference = reference.masked_fill(~valid, 0)
    if outputs.num_mask_channels == 1:
        mask_logits, reference = mask_logits.squeeze(1), reference.to(exact)
    else:
        reference = reference.long()
    loss = logits.new_zeros(len(logits), dtype=exact)
    for weight, name in terms_of(names):
        own = _of_each_image(name, mask_logits, reference, valid, group)
        loss = loss + (own if weight == 1 else weight * own)
    target_logits, target = outputs.target_logits(logits), outputs.target_mask(masks)
    if outputs.target is not None and target_logits is not None and target is not None:
        loss = loss + target_weight * target_loss(outputs.target, target_logits.to(exact), target, group)
    return loss


def training_loss(config: TrainConfig) -> Callable[..., Tensor]:
    """The loss of a training: a function of logits, masks and `group`, as `segmentation_loss`."""
    return partial(segmentation_loss, config.loss, outputs=Outputs.of(config.model), target_weight=config.target_weight)


def check_losses(names: str, num_processes: int = 1, has_ignore: bool = False) -> None:
    """Imports the losses. Raises InputError for one that cannot be used: because `num_processes` share an image and it
    needs whole ones, or because the masks have pixels that nobody labelled and it does not leave them out."""
    for _, name in terms_of(names):
        _, arguments = _loss(name)
        if has_ignore and "valid" not in arguments:
            raise InputError(
                f"--loss: {losses.find(name).described} takes no `valid`, and the masks have pixels that nobody "
                "labelled (255); add this argument (docs/guides/own_parts.md, Add a loss), or give another --loss"
            )
        if num_processes > 1 and not arguments & {"total", "group"}:
            raise InputError(
                f"--scale.spatial-parallel {num_processes}: the loss {losses.find(name).described} takes neither "
                "`total` nor `group`, and so needs whole images; give 1, or another --loss (docs/guides/own_parts.md, "
                "Add a loss)"
            )


def _of_each_image(name: str, logits: Tensor, masks: Tensor, valid: Tensor, group: Parts) -> Tensor:
    function, arguments = _loss(name)
    known: dict[str, Any] = {"valid": valid, "total": group.total, "group": group}
    with noting(f"in the loss {losses.find(name).described}"):
        loss = function(logits, masks, **{each: known[each] for each in known if each in arguments})
    if not isinstance(loss, Tensor) or loss.shape != (len(logits),):
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(
            f"loss {losses.find(name).described}: gave {shape} for {len(logits)} images; return one number an image, "
            f"a tensor ({len(logits)},)"
        )
    return loss if "valid" in arguments else loss.masked_fill(~valid.flatten(1).all(1), torch.nan)


def _loss(name: str) -> tuple[Callable[..., Tensor], frozenset[str]]:
    """A loss by name, and the names of its arguments."""
    function = losses.load(name, "--loss")
    if not callable(function):
        raise InputError(f"loss {losses.find(name).described}: is a {type(function).__name__} and no function")
    return function, _arguments(function)


@lru_cache
def _arguments(function: Callable[..., Tensor]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except ValueError:  # of a function in C, as many of torch: it gets logits and masks
        return frozenset()
