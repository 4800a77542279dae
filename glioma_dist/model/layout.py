"""The order of a feature map's elements in memory: contiguous (B, C, H, W), or channels last (B, H, W, C)."""

from __future__ import annotations

import torch
from torch import Tensor


def layout_of(features: Tensor) -> torch.memory_format:
    """The layout that operations on `features` (B, C, H, W) give their outputs."""
    return torch.channels_last if features.stride(1) == 1 and features.shape[1] > 1 else torch.contiguous_format
