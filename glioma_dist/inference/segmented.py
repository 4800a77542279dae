"""An image with what a network says of its pixels: what all writers of results take."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from glioma_dist.config.paths import Url
from glioma_dist.evaluation.maps import ONE_CLASS, cell_map, channels_first, class_map, target_map
from glioma_dist.evaluation.separation import check_separable, separate
from glioma_dist.inference.components import Components
from glioma_dist.inference.large.picture import StretchedPicture
from glioma_dist.inference.large.scratch import RowFile
from glioma_dist.inference.regions import ClassComponents, Regions, SeparatedCells
from glioma_dist.model.outputs import Outputs


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
    """A picture and what a network says of its pixels. Both may be arrays in memory, memory-mapped, or anything that
    gives arrays for slices of rows: what reads them row by row works in bounded memory."""

    image: Path | Url
    """The file that it comes from."""
    pixels: np.ndarray | StretchedPicture
    """uint8, (H, W) or (H, W, 3) RGB, its contrast stretched."""
    maps: np.ndarray | RowFile
    """float32: (H, W), the probability of each pixel to belong to a cell; or (H, C, W), where the network has several
    outputs."""
    threshold: float
    """A pixel belongs to a cell if its probability is at least this value."""
    metadata: ImageMetadata = field(default_factory=ImageMetadata)
    way: str = "whole"
    """How the network saw the picture: whole, in strips, or in tiles."""
    flags: tuple[str, ...] = ()
    """Names of what is doubtful about the picture."""
    outputs: Outputs = ONE_CLASS
    """What the channels of the maps mean."""
    classes: tuple[str, ...] = ()
    """Names of the classes of cells, where the network tells several: class 1 is the first."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.maps.shape[0], self.maps.shape[-1]

    @property
    def probabilities(self) -> np.ndarray | RowFile:
        """Return the probability of each pixel to belong to a cell, float32 (H, W). With several outputs: in memory
        as a whole."""
        return self.maps if len(self.maps.shape) == 2 else self.probability_rows(0, self.shape[0])

    @property
    def num_classes(self) -> int:
        """Return how many classes of cells there are: 1, or the number of names."""
        return max(1, len(self.classes))

    @cached_property
    def mask(self) -> np.ndarray:
        """uint8, (H, W): 0 where there is no cell, and elsewhere the number of the class: 1, or, where the network
        tells several, 1 to `num_classes`. In memory as a whole."""
        return self.mask_rows(0, self.shape[0])

    @cached_property
    def components(self) -> Components | ClassComponents:
        """The connected components of the mask: of each class on their own. Pixels that touch at a corner are
        connected."""
        if self.classes:
            return ClassComponents(self.mask_rows, *self.shape, self.num_classes)
        return Components(self.mask_rows, *self.shape)

    @cached_property
    def regions(self) -> Regions:
        """What results number and outline: cells that a second output separates, or the components.

        Raises InputError where cells are to be separated and the image is too large for it.
        """
        if self.outputs.target is None:
            return self.components
        check_separable(*self.shape)
        target = target_map(self.outputs, channels_first(np.asarray(self.maps[:], np.float32)))
        return SeparatedCells(separate(self.mask, target, self.outputs.target), self.mask, self.num_classes)

    @property
    def are_cells(self) -> bool:
        """Return whether the regions are single cells, as far as the network tells them apart."""
        return self.outputs.target is not None

    def region_class(self, number: int) -> str:
        """Return the name of a region's class, by the region's number from 1; empty where there is one class only."""
        return self.classes[self.regions.classes[number - 1] - 1] if self.classes else ""

    def mask_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to before `stop` of the mask: uint8, numbers of classes, 0 where there is no cell."""
        return class_map(self.outputs, self._map_rows(start, stop), self.threshold)

    def probability_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to before `stop` of the probabilities to belong to a cell: float32."""
        return cell_map(self.outputs, self._map_rows(start, stop))

    def _map_rows(self, start: int, stop: int) -> np.ndarray:
        """(C, rows, W)."""
        return channels_first(np.asarray(self.maps[start:stop], np.float32))

    def pixel_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to before `stop` of the picture: uint8."""
        return np.asarray(self.pixels[start:stop])
