"""The arithmetic of a training step, for all that take one: training, the memory estimator, the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from glioma_dist.model.unet import normalise


def compute_gradients(
    model: nn.Module,
    images: Tensor,
    masks: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    autocast: AbstractContextManager,
    *,
    seeds: Tensor | None = None,
    factor: float = 1.0,
    backward: Callable[[Tensor], None] = Tensor.backward,
    after_forward: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Forward pass, loss and backward pass. Returns the logits (B, 1, H, W) and the losses (B,) of the images.

    images: (B, 1 or 3, H, W) uint8. masks: (B, H, W) of 0 and 1. loss: takes logits and masks, returns (B,).
    seeds: (B,) int64, for models that drop paths. factor: what the sum of the losses is multiplied by before the
    backward pass. backward: the engine's. after_forward: is called between the two passes.
    """
    with autocast:
        # Nothing else refers to the normalised images: a model that does not keep them lets them go.
        logits = model(normalise(images)) if seeds is None else model(normalise(images), seeds)
    losses = loss(logits, masks)
    after_forward()
    # Not multiplied by 1: the memory estimator would count one number more.
    backward(losses.sum() if factor == 1 else losses.sum() * factor)
    return logits, losses
