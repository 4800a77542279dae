"""Cells drawn one over another: classes, and a number for each cell.

A pixel of several cells belongs to the one of the later class; among those of one class to the smallest, so that no
cell vanishes below a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask


class Layers(NamedTuple):
    """mask: uint8 (H, W), class numbers. instances: uint16 (H, W), numbers of cells from 1, in their order.
    num_shared: pixels that cells of several classes have. num_hidden: cells of which no pixel is left."""

    mask: np.ndarray
    instances: np.ndarray
    num_shared: int
    num_hidden: int


def draw_layers(cells: Sequence[dict], classes: Sequence[int], height: int, width: int) -> Layers:
    """Draw cells. cells: pycocotools' run lengths of each; classes: the number of its class."""
    mask = np.zeros((height, width), np.uint8)
    drawn = np.zeros((height, width), np.int32)
    shared = np.zeros((height, width), bool)
    boxes = [_pixels_of(cell) for cell in cells]
    areas = [np.count_nonzero(inside) for _, inside in boxes]
    for number in sorted(range(len(cells)), key=lambda cell: (classes[cell], -areas[cell], cell)):
        box, inside = boxes[number]
        shared[box] |= inside & (mask[box] > 0) & (mask[box] != classes[number])
        mask[box][inside] = classes[number]
        drawn[box][inside] = number + 1
    present = np.bincount(drawn.ravel(), minlength=len(cells) + 1) > 0
    present[0] = False
    renumbered = np.where(present, np.cumsum(present), 0)
    num_hidden = len(cells) - int(present.sum())
    return Layers(mask, renumbered[drawn].astype(np.uint16), int(np.count_nonzero(shared)), num_hidden)


def _pixels_of(cell: dict) -> tuple[tuple[slice, slice], np.ndarray]:
    """The rows and columns that a cell has pixels in, and which of their pixels are its: bool."""
    left, top, across, down = coco_mask.toBbox(cell).astype(int).tolist()
    box = slice(top, top + down), slice(left, left + across)
    return box, coco_mask.decode(cell)[box] > 0
