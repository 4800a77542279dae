"""Counting what an encoder costs: parameters, operations and memory."""

from __future__ import annotations

from functools import partial

import torch

from glioma_dist.benchmark.encoder_table import GIB, GIGA, NEED_TWO_IMAGES, SIZES
from glioma_dist.config import ModelConfig
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.scale.memory_estimator import estimate_unet_step
from glioma_dist.scale.operations import forward_operations
from glioma_dist.size import Size


def count_encoder(name: str) -> dict[str, float | str | int]:
    """A row: millions of parameters of the U-Net and, at both sizes, 10^9 operations of a forward pass (a multiply-add
    is two) and peak GiB of a training step in fp32 with Adam, of one image or of `images`."""
    images = 2 if name in NEED_TWO_IMAGES else 1
    config = ModelConfig(encoder=name)
    row: dict[str, float | str | int] = {"encoder": name, "images": images}
    with torch.random.fork_rng(devices=[]):
        model = UNet(config)
    row["parameters_millions"] = round(sum(each.numel() for each in model.parameters()) / 1e6, 2)
    for size_name, size in SIZES.items():
        row[f"peak_gib_{size_name}"] = round(_peak(config, size, images) / GIB, 2)
    for size_name, size in SIZES.items():
        row[f"gflop_{size_name}"] = round(forward_operations(config, size) / GIGA, 1)
    return row


def _peak(config: ModelConfig, size: Size, images: int) -> int:
    with torch.random.fork_rng(devices=[]):
        model = UNet(config)
    return estimate_unet_step(model, partial(segmentation_loss, DEFAULT_LOSS), size, images).peak
