"""What results number and outline: components of a mask, those of each class on their own, or separated cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from glioma_dist.inference.components import Components, block_rows
from glioma_dist.inference.outlines import Polygon, outlines


class Regions(Protocol):
    """Areas of an image that do not overlap, numbered from 1."""

    height: int
    width: int
    areas: np.ndarray
    """int64 (N,), pixels of each."""

    @property
    def classes(self) -> np.ndarray:
        """Return the class of each, uint8 (N,), from 1."""

    def __len__(self) -> int:
        """Return how many there are."""

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield blocks from the top: the first row, and the numbers of the pixels, int32 (rows, width), 0 where there
        is no region."""


class ClassComponents:
    """The connected components of each class of a mask, numbered class after class."""

    def __init__(self, rows: Callable[[int, int], np.ndarray], height: int, width: int, num_classes: int) -> None:
        """rows: the mask's rows from a first to before a last one, uint8, numbers of classes, 0 where there is none."""
        self.height, self.width = height, width
        self.of_class = [
            Components(lambda start, stop, number=number: rows(start, stop) == number, height, width)
            for number in range(1, num_classes + 1)
        ]
        self.areas = np.concatenate([each.areas for each in self.of_class])
        self.classes = np.repeat(np.arange(1, num_classes + 1, dtype=np.uint8), [len(each) for each in self.of_class])

    def __len__(self) -> int:
        return len(self.areas)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """As `Regions.blocks`."""
        for parts in zip(*(each.blocks() for each in self.of_class), strict=True):
            found, num_before = np.zeros_like(parts[0][1]), 0
            for (_, labels), components in zip(parts, self.of_class, strict=True):
                np.add(labels, num_before, out=found, where=labels > 0)
                num_before += len(components)
            yield parts[0][0], found


class SeparatedCells:
    """Cells of a label image, which may touch. The class of a cell is that of most of its pixels."""

    def __init__(self, labels: np.ndarray, mask: np.ndarray, num_classes: int) -> None:
        """labels: int32 (H, W), from 1, none left out, 0 where there is no cell. mask: uint8 (H, W), numbers of
        classes."""
        (self.height, self.width), self.labels = labels.shape, labels
        num = int(labels.max(initial=0))
        self.areas = np.bincount(labels.ravel(), minlength=num + 1)[1:].astype(np.int64)
        places = labels.ravel().astype(np.int64) * (num_classes + 1) + mask.ravel()
        by_class = np.bincount(places, minlength=(num + 1) * (num_classes + 1)).reshape(num + 1, num_classes + 1)
        self.classes = (by_class[1:, 1:].argmax(1) + 1).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.areas)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """As `Regions.blocks`."""
        step = block_rows(self.width)
        for start in range(0, self.height, step):
            yield start, self.labels[start : start + step]


def region_outlines(regions: Regions, rows: Callable[[int, int], np.ndarray]) -> list[list[Polygon]]:
    """Return the polygons of each region, in the order of their numbers.

    rows: the mask's rows from a first to before a last one, numbers of classes.
    """
    if isinstance(regions, Components):
        return outlines(rows, regions)
    if isinstance(regions, ClassComponents):
        return [
            found
            for number, components in enumerate(regions.of_class, 1)
            for found in outlines(lambda start, stop, number=number: rows(start, stop) == number, components)
        ]
    if isinstance(regions, SeparatedCells):
        return [_cell_outlines(*each) for each in _cut_out(regions.labels)]
    raise TypeError(f"no outlines of {type(regions).__name__}")


def _cut_out(labels: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
    """The smallest part of the image around each cell, bool, and its first row and column."""
    from scipy import ndimage

    for number, box in enumerate(ndimage.find_objects(labels), 1):
        yield labels[box] == number, box[0].start, box[1].start


def _cell_outlines(cell: np.ndarray, top: int, left: int) -> list[Polygon]:
    """The polygons of one cell, moved to its place."""

    def rows(start: int, stop: int) -> np.ndarray:
        return cell[start:stop]

    found = outlines(rows, Components(rows, *cell.shape))
    return [[ring + np.array([left, top], np.int32) for ring in polygon] for polygons in found for polygon in polygons]
