"""The arithmetic of a training step, for all that take one: training, the memory estimator, the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from glioma_dist.model.unet import UNet, normalise, unwrapped


def compute_gradients(
    model: nn.Module,
    images: Tensor,
    masks: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    autocast: Callable[[], AbstractContextManager],
    *,
    seeds: Tensor | None = None,
    factor: float = 1.0,
    backward: Callable[[Tensor], None] = Tensor.backward,
    after_forward: Callable[[Tensor], None] = lambda losses: None,
    num_micro_batches: int = 1,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """Forward pass, loss and backward pass. Returns the logits (B, 1, H, W) and the losses (B,) of the images.

    images: (B, 1 or 3, H, W) uint8. masks: (B, H, W) of 0 and 1. loss: takes logits and masks, returns (B,).
    autocast: makes the context of a forward pass. seeds: (B,) int64 on the CPU, for models with stochastic depth.
    factor: the sum of the losses is multiplied by it before the backward pass. backward: the engine's. after_forward:
    is called between the two passes, with the losses.

    num_micro_batches: the batch is cut into so many parts, as equal as its images allow, which are computed one after
    another; their gradients add up. no_sync: within it, the engine sends no gradients; it is left for the last part.
    """
    if num_micro_batches == 1:
        return _compute_part(model, images, masks, loss, autocast, seeds, factor, backward, after_forward)
    seeds_of_parts = [None] * num_micro_batches if seeds is None else seeds.tensor_split(num_micro_batches)
    parts = zip(*(each.tensor_split(num_micro_batches) for each in (images, masks)), seeds_of_parts, strict=True)
    found = []
    for number, (*part, own_seeds) in enumerate(parts, start=1):
        with nullcontext() if number == num_micro_batches else no_sync():
            results = _compute_part(model, *part, loss, autocast, own_seeds, factor, backward, after_forward)
            found.append([each.detach() for each in results])
            del results  # with it ends what is left of the part's graph, before the next part begins
    logits, losses = (torch.cat(each) for each in zip(*found, strict=True))
    return logits, losses


def _compute_part(
    model: nn.Module,
    images: Tensor,
    masks: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    autocast: Callable[[], AbstractContextManager],
    seeds: Tensor | None,
    factor: float,
    backward: Callable[[Tensor], None],
    after_forward: Callable[[Tensor], None],
) -> tuple[Tensor, Tensor]:
    """`compute_gradients` of one micro-batch."""
    drawn = None if seeds is None else draw(model, seeds, images.device)
    with autocast():
        # Nothing else refers to the normalised images: a model that does not keep them lets them go.
        logits = model(normalised(model, images)) if drawn is None else model(normalised(model, images), drawn)
    losses = loss(logits, masks)
    after_forward(losses)
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
