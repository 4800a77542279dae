"""Adam as each device computes it fastest."""

from __future__ import annotations

import torch
from torch import nn


def make_adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) of all parameters of `model`, on the device that they are on.

    On GPUs PyTorch's fused kernel: it reads and writes each number once, in a few launches for all parameters, and with
    fp16 skips a step that overflowed without the CPU looking. On CPUs what PyTorch chooses. Both keep the same state,
    which can be loaded into either.
    """
    parameters = list(model.parameters())
    fused = True if parameters and all(each.is_cuda for each in parameters) else None
    return torch.optim.Adam(parameters, lr=lr, fused=fused)
