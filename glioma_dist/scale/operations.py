"""Floating-point operations of a network, counted on tensors that hold nothing."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from glioma_dist.config import ModelConfig
from glioma_dist.model.unet import UNet
from glioma_dist.size import Size


@lru_cache
def forward_operations(config: ModelConfig, size: Size) -> int:
    """Of one image's forward pass through the U-Net in evaluation mode; a multiply-add is two."""
    with torch.device("meta"):
        model = UNet(config).eval()
        images = torch.empty(1, 3, size.height, size.width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()
