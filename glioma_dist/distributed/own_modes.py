"""PyTorch's modes in a call from Python: those of a new process, but for the default type."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch

DEVICE_TYPES = ("cpu", "cuda")
"""Those whose autocast the code around a call may have switched on."""


@contextmanager
def own_modes() -> Generator[None]:
    """Context manager, and decorator of a function: gradients are computed, tensors are made on the CPU where nothing
    else is said, and nothing is cast. The caller's modes are restored at the end. The default type stays: a script that
    sets fp64 computes in fp64.

    Without it, `torch.no_grad` and `torch.inference_mode` around a call would leave nothing to train with, autocast
    would change its results, and another default device would end it.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in DEVICE_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # each call of PyTorch takes longer within a device
            stack.enter_context(torch.device("cpu"))
        yield
