"""A training step, as the planner is asked about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor

from glioma_dist.config import ModelConfig
from glioma_dist.config.scale import UNIT_ROWS, strip_edges
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.scale.tile_size import TileSize
from glioma_dist.size import Size

Level = Literal["none", "selective", "full", "offload"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""From the quickest step to the smallest."""
ON_DEVICE: tuple[Level, ...] = LEVELS[:3]
"""Those that need no memory beside the device's."""
IN_TILES: tuple[Level, ...] = ("full", "offload")
"""Those that compute the largest maps in tiles; offload computes what full computes, except of large images."""
LARGE_PIXELS = 2**26
"""Pixels of one padded image, or of its largest strip, from which on it is large: 67 million."""


@dataclass(frozen=True)
class Step:
    """A training step, as far as its memory depends on it."""

    model: ModelConfig
    size: Size
    batch_size: int
    """Images on one device, or on the devices that share them by rows; with gradient accumulation those of a
    micro-batch."""
    bf16: bool
    num_devices: int = 1
    spatial_parallel: int = 1
    """Devices that share each image."""
    shards: bool = False
    """Whether the devices share weights, gradients and optimizer, too (FSDP2)."""
    loss_name: str = DEFAULT_LOSS
    num_micro_batches: int = 1
    """Parts in which a device computes its images, one after another (gradient accumulation)."""
    has_average: bool = False
    """Whether a moving average of the weights is kept beside them."""
    num_moments: int = 2
    """Numbers that the optimizer keeps for each weight: Adam's two moments, SGD's momentum, or none."""
    freeze_encoder: bool = False
    optimizer_in_backward: bool = False
    """Whether each gradient is freed as soon as it is complete."""
    has_exact_sum: bool = False
    """Whether gradients are added as 64-bit integers (--reproducible)."""
    tile_size: TileSize = field(kw_only=True)
    """Of the device (`tile_size.py`): a GPU's are larger than a CPU's."""
    loss: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True, compare=False, repr=False)
    """Takes logits (B, 1, H, W) and masks (B, H, W), returns (B,)."""

    @property
    def has_large_images(self) -> bool:
        """Whether the largest strip of a padded image has `LARGE_PIXELS`."""
        width, height = units_of(self.size, self.spatial_parallel)
        return width * height * UNIT_ROWS**2 >= LARGE_PIXELS


def units_of(size: Size, num_strips: int) -> tuple[int, int]:
    """Width and height, in units of `UNIT_ROWS`, of the highest strip of a padded image."""
    edges = strip_edges(size.height, num_strips)
    height = max(stop - start for start, stop in pairwise(edges))
    return math.ceil(size.width / UNIT_ROWS), math.ceil(height / UNIT_ROWS)
