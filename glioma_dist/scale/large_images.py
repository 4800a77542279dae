"""Images so large that a step at the level offload keeps as little of them as can be, and computes more again."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.step import LARGE_PIXELS


@dataclass
class LargeImages:
    """Decides it, for all parts of a model and on all processes alike: norms over a batch talk to each other in a fixed
    order, so that it may not depend on how many images a process has."""

    group: SpatialGroup = field(default_factory=SpatialGroup)
    """The processes that share each image: the one with most rows decides."""
    pixels: int = field(default_factory=lambda: LARGE_PIXELS)

    def have(self, features: Tensor, stride: int) -> bool:
        """Whether a map (B, C, H, W) of this stride is one of large images."""
        height, width = features.shape[2:]
        units = self.group.units
        most_rows = height * max(units) // units[self.group.rank]
        return most_rows * stride * width * stride >= self.pixels
