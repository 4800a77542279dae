"""fp16's loss scale: what has to be saved of it, and whether a step was skipped because of it."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from glioma_dist.errors import InputError

LEAST_SCALE = 2.0**-10
"""Below which not the scale but the loss or its gradient is at fault."""


def scaler_state(accelerator: Accelerator) -> dict[str, float] | None:
    """State of the loss scale, numbers that JSON keeps exactly; None where there is none (fp32, bf16)."""
    return None if accelerator.scaler is None else dict(accelerator.scaler.state_dict())


def load_scaler_state(accelerator: Accelerator, state: dict[str, float] | None) -> None:
    """Put back what `scaler_state` gave. Without a state, or without fp16, nothing is done.

    Raises InputError where `state` is not what `scaler_state` gives.
    """
    if accelerator.scaler is None or not state:
        return
    wanted = accelerator.scaler.state_dict()
    valid = isinstance(state, dict) and state.keys() == wanted.keys()
    valid = valid and all(type(value) in (int, float) for value in state.values()) and 0 < state["scale"] < float("inf")
    if not valid:
        raise InputError(
            f"the checkpoint's fp16 loss scale holds {state!r:.200} instead of numbers for {', '.join(wanted)}; resume "
            "from another checkpoint"
        )
    accelerator.scaler.load_state_dict(state)


def overflow(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> Tensor | float:
    """A tensor () fp32 on the device, above 0 if a gradient is not finite at this loss scale. 0 without a loss scale.

    Call it after `accelerator.unscale_gradients()`. optimizer: as `accelerator.prepare` returned it.
    """
    if accelerator.scaler is None:
        return 0.0
    # PyTorch has no public name for it; GradScaler.step reads the same, by one `item()` more.
    found = accelerator.scaler._found_inf_per_device(getattr(optimizer, "optimizer", optimizer))
    return torch.stack(list(found.values())).sum()


def step_was_skipped(accelerator: Accelerator, optimizer: torch.optim.Optimizer, found_overflow: float = 0.0) -> bool:
    """Whether the last `optimizer.step()` was skipped, because a gradient was not finite at this loss scale, which is
    halved then. The same on all processes.

    optimizer: as `accelerator.prepare` returned it. found_overflow: the value of `overflow`. It is needed because a
    fused optimizer skips the step on the device, and accelerate counts the step as taken.
    """
    return accelerator.scaler is not None and (found_overflow > 0 or bool(optimizer.step_was_skipped))


def scale_is_exhausted(accelerator: Accelerator) -> bool:
    """Whether steps have been skipped so often that the loss scale is not the cause."""
    return accelerator.scaler is not None and accelerator.scaler.get_scale() < LEAST_SCALE
