"""The arithmetic of a training step, for all that take one: training, the memory estimator, the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from glioma_dist.model.unet import UNet, normalise, unwrapped


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
    seeds: (B,) int64 on the CPU, for models with stochastic depth. factor: the sum of the losses is multiplied by it
    before the backward pass. backward: the engine's. after_forward: is called between the two passes.
    """
    drawn = None if seeds is None else draw(model, seeds, images.device)
    with autocast:
        # Nothing else refers to the normalised images: a model that does not keep them lets them go.
        logits = model(normalised(model, images)) if drawn is None else model(normalised(model, images), drawn)
    losses = loss(logits, masks)
    after_forward()
    # Not multiplied by 1: the memory estimator would count one number more.
    backward(losses.sum() if factor == 1 else losses.sum() * factor)
    return logits, losses


def normalised(model: nn.Module, images: Tensor) -> Tensor:
    """`normalise(images)`, with the constants on the model's device if the model has them."""
    inner = unwrapped(model)
    return inner.normalise(images) if isinstance(inner, UNet) else normalise(images)


def draw(model: nn.Module, seeds: Tensor, device: torch.device) -> Tensor | None:
    """Draw the random numbers of a forward pass and start their copy to `device`; None if there are none.

    DDP and FSDP2 move the inputs of a model to the GPU. If seeds were read there, the forward pass could begin only
    after the GPU has finished all earlier work. A model of another package gets the seeds themselves.
    """
    inner = unwrapped(model)
    drawn = inner.encoder.draw(seeds) if isinstance(inner, UNet) else seeds
    if drawn is None or drawn is seeds or device.type != "cuda":
        return drawn
    return drawn.pin_memory().to(device, non_blocking=True)


@torch.no_grad()
def read_numbers(*values: Tensor | float) -> list[float]:
    """Return the values of tensors () on one device, and of plain numbers, in fp64, with one read. For each read the
    CPU waits until the GPU has finished all earlier work."""
    on_device = [value.double() for value in values if isinstance(value, Tensor)]
    found = iter(torch.stack(on_device).cpu().tolist())
    return [next(found) if isinstance(value, Tensor) else value for value in values]
