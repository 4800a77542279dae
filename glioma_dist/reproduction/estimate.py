"""What runs will cost, before any data is at hand: operations counted, divided by an assumed speed."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from glioma_dist.config import ModelConfig
from glioma_dist.model.unet import UNet
from glioma_dist.reproduction.plan import Job
from glioma_dist.size import Size

SECONDS_TO_START = 30.0
"""A process, its libraries, its first step."""


@lru_cache
def forward_operations(encoder: str, size: Size) -> int:
    """Floating-point operations of one image's pass through the U-Net, counted on tensors that hold nothing."""
    with torch.device("meta"):
        model = UNet(ModelConfig(encoder=encoder)).eval()
        images = torch.empty(1, 3, size.height, size.width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()


def hours(job: Job, operations_per_second: float) -> float:
    """At most, for early stopping ends many runs before; recomputation and reading the data are not in it."""
    operations = sum(
        num_images * num_passes * forward_operations(job.encoder, size)
        for num_images, num_passes, size in job.num_passes
    )
    return (operations / operations_per_second + SECONDS_TO_START) / 3600
