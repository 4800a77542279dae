"""An image with the probabilities that a network gave it: what all writers of results take."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from glioma_dist.config.paths import Url


@dataclass(frozen=True)
class ImageMetadata:
    """What a file says of a picture; None where it says nothing."""

    pixel_size_um: float | None = None
    """Width of a pixel, in micrometres."""
    hours: float | None = None
    """Time of the picture since the first one of its file."""


@dataclass(frozen=True)
class SegmentedImage:
    """A picture and its probabilities."""

    image: Path | Url
    """The file that it comes from."""
    pixels: np.ndarray
    """uint8, (H, W) or (H, W, 3) RGB, its contrast stretched."""
    probabilities: np.ndarray
    """float32, (H, W): probability of each pixel to belong to a cell."""
    threshold: float
    """A pixel belongs to a cell if its probability is at least this value."""
    metadata: ImageMetadata = field(default_factory=ImageMetadata)
    way: str = "whole"
    """How the network saw the picture: whole, in strips, or in tiles."""

    @cached_property
    def mask(self) -> np.ndarray:
        """uint8, (H, W): 1 where there is a cell, and 0 elsewhere."""
        return (self.probabilities >= self.threshold).astype(np.uint8)
