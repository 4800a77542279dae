"""An image with the probabilities that a network gave it: what all writers of results take."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from glioma_dist.config.paths import Url
from glioma_dist.inference.components import Components
from glioma_dist.inference.large.picture import StretchedPicture
from glioma_dist.inference.large.scratch import RowFile


@dataclass(frozen=True)
class ImageMetadata:
    """What a file says of a picture; None, or an empty text, where it says nothing."""

    pixel_size_um: float | None = None
    """Width of a pixel, in micrometres."""
    hours: float | None = None
    """Time of the picture since the first one of its file."""
    acquired: str = ""
    """When the picture was taken, in ISO 8601."""
    plane: str = ""
    """Which picture of its file it is, for example t003 or t003-p002; empty where the file has one."""


@dataclass(frozen=True)
class SegmentedImage:
    """A picture and its probabilities. Both may be arrays in memory, memory-mapped, or anything that gives arrays for
    slices of rows: what reads them row by row works in bounded memory."""

    image: Path | Url
    """The file that it comes from."""
    pixels: np.ndarray | StretchedPicture
    """uint8, (H, W) or (H, W, 3) RGB, its contrast stretched."""
    probabilities: np.ndarray | RowFile
    """float32, (H, W): probability of each pixel to belong to a cell."""
    threshold: float
    """A pixel belongs to a cell if its probability is at least this value."""
    metadata: ImageMetadata = field(default_factory=ImageMetadata)
    way: str = "whole"
    """How the network saw the picture: whole, in strips, or in tiles."""
    flags: tuple[str, ...] = ()
    """Names of what is doubtful about the picture."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.probabilities.shape
        return height, width

    @cached_property
    def mask(self) -> np.ndarray:
        """uint8, (H, W): 1 where there is a cell, and 0 elsewhere. In memory as a whole."""
        return self.mask_rows(0, self.shape[0])

    @cached_property
    def components(self) -> Components:
        """The connected components of the mask. Pixels that touch at a corner are connected."""
        return Components(self.mask_rows, *self.shape)

    def mask_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to before `stop` of the mask: uint8, 1 where there is a cell."""
        return (self.probability_rows(start, stop) >= self.threshold).astype(np.uint8)

    def probability_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to before `stop` of the probabilities: float32."""
        return np.asarray(self.probabilities[start:stop], np.float32)

    def pixel_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to before `stop` of the picture: uint8."""
        return np.asarray(self.pixels[start:stop])
