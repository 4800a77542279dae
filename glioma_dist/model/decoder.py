"""The decoder, the same for all encoders: bilinear upsampling, ReLU, two convolutions a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.model.group_norm import StreamGroupNorm
from glioma_dist.model.upsampling import BilinearUpsample

CHANNELS_PER_GROUP = 16
"""Of group norm: Wu & He 2018 (arXiv 1803.08494), table 3, found 16 channels a group best."""


def make_norm(kind: Literal["batch", "group"], channels: int) -> nn.Module:
    """Batch norm, or group norm with at most 16 channels a group."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    groups = next(groups for groups in range(max(1, channels // CHANNELS_PER_GROUP), 0, -1) if channels % groups == 0)
    return StreamGroupNorm(groups, channels)


class DecoderBlock(nn.Module):
    """Doubles a map's size, joins the encoder's map of that size where there is one, and convolves twice."""

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, norm: Literal["batch", "group"]
    ) -> None:
        super().__init__()
        self.upsample = BilinearUpsample()
        self.conv1 = nn.Conv2d(in_channels + skip_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = make_norm(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, out_channels)

    def forward(self, features: Tensor, skip: Tensor | None) -> Tensor:
        """features: (B, in_channels, H, W); skip: (B, skip_channels, 2H, 2W) or None.
        Returns (B, out_channels, 2H, 2W)."""
        features = self.upsample(features)
        features = features if skip is None else torch.cat([features, skip], dim=1)
        features = functional.relu(self.norm1(self.conv1(features)), inplace=True)
        return functional.relu(self.norm2(self.conv2(features)), inplace=True)


class CenterBlock(nn.Module):
    """Convolves the coarsest map twice, for encoders that end with a pooling (VGG), as segmentation_models.pytorch
    does it."""

    def __init__(self, channels: int, norm: Literal["batch", "group"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, channels)

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, channels, H, W). Returns the same shape."""
        features = functional.relu(self.norm1(self.conv1(features)), inplace=True)
        return functional.relu(self.norm2(self.conv2(features)), inplace=True)


class BilinearDecoder(nn.Module):
    """U-Net decoder (Ronneberger et al. 2015) in the article's form, from stride 32 to full size in five blocks, and a
    3x3 head with `num_outputs` logits a pixel. With `center`, a `CenterBlock` stands before the blocks."""

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        channels: Sequence[int],
        norm: Literal["batch", "group"],
        center: bool = False,
        num_outputs: int = 1,
    ) -> None:
        super().__init__()
        skips = dict(zip(encoder_strides, encoder_channels, strict=True))
        width = skips.pop(2 ** len(channels))
        self.center = CenterBlock(width, norm) if center else nn.Identity()
        self.skip_strides = tuple(2**level for level in range(len(channels) - 1, -1, -1))
        blocks = []
        for stride, out_channels in zip(self.skip_strides, channels, strict=True):
            blocks.append(DecoderBlock(width, skips.get(stride, 0), out_channels, norm))
            width = out_channels
        self.encoder_strides = tuple(encoder_strides)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(width, num_outputs, 3, padding=1)

    def forward(self, encoder_features: list[Tensor]) -> Tensor:
        """encoder_features: the encoder's, finest first. Returns logits (B, num_outputs, H, W) at full size."""
        features = self.center(encoder_features[-1])
        for block, skip in zip(self.blocks, self.skips(encoder_features), strict=True):
            features = block(features, skip)
        return self.head(features)

    def skips(self, encoder_features: list[Tensor]) -> list[Tensor | None]:
        """The encoder's map that each block joins; None where the encoder has none of that size."""
        by_stride = dict(zip(self.encoder_strides, encoder_features, strict=True))
        return [by_stride.get(stride) for stride in self.skip_strides]
