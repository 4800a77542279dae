"""Images so large that a step at the level offload keeps as little of them as can be, and computes more again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from glioma_dist.scale.spatial_group import SpatialGroup

LARGE_PIXELS = 2**26
"""Pixels per device of all images of a pass, from which on they are large."""


@dataclass
class LargeImages:
    """Decides it, for all parts of a model and on all processes alike."""

    group: SpatialGroup = field(default_factory=SpatialGroup)
    """The processes that share each image: the one with most rows decides."""

    def have(self, features: Tensor, stride: int) -> bool:
        """Whether a map (B, C, H, W) of this stride is one of large images."""
        num_images, _, height, width = features.shape
        units = self.group.units
        most_rows = height * max(units) // units[self.group.rank]
        return math.prod((num_images, most_rows, width, stride, stride)) >= LARGE_PIXELS
