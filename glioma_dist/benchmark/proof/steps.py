"""A training step of one network on one device, for the checks that measure steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from glioma_dist.config import ModelConfig, ScaleConfig
from glioma_dist.distributed.numerics import numerics
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.planner import Level
from glioma_dist.scale.scale_model import scale_model
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.size import Size

LOSS = partial(segmentation_loss, DEFAULT_LOSS)


def build(encoder: str, level: Level, device: torch.device, scale: ScaleConfig | None = None) -> UNet:
    """The U-Net as training has it at this level, in training mode."""
    model = build_model(ModelConfig(encoder=encoder), 0)[0]
    scale_model(model, scale or ScaleConfig(), level, SpatialGroup())
    return model.to(device).train()


def draw_images(size: Size, device: torch.device, count: int = 1) -> torch.Tensor:
    """Grey noise (count, 1, H, W) uint8."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 1, size.height, size.width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def make_step(
    model: nn.Module,
    images: torch.Tensor,
    precision: torch.dtype | None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Callable[[], torch.Tensor]:
    """A function that takes one step, with the rounding of a run, and returns the losses (B,). precision: of autocast;
    None: fp32."""
    masks, seeds = (images[:, 0] > 180).to(torch.uint8), torch.arange(len(images))

    def take_step() -> torch.Tensor:
        kind, enabled = precision or torch.bfloat16, precision is not None
        autocast = partial(torch.autocast, images.device.type, kind, enabled=enabled)
        with numerics():
            _, losses = compute_gradients(model, images, masks, LOSS, autocast, seeds=seeds)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        return losses.detach()

    return take_step
