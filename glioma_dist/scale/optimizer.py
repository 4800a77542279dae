"""The fastest Adam of each device."""

from __future__ import annotations

import torch
from torch import nn


def make_adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) of all parameters of `model`, on the device that they are on.

    On GPUs it is PyTorch's fused kernel, which reads and writes each number once, needs a few launches for all
    parameters, and skips an fp16 step that overflowed without a synchronisation. On CPUs PyTorch chooses. Both have the
    same state, which can be loaded into either.
    """
    parameters = list(model.parameters())
    fused = True if parameters and all(each.is_cuda for each in parameters) else None
    return torch.optim.Adam(parameters, lr=lr, fused=fused)
