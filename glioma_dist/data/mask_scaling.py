"""Masks scaled as the article scales references: bilinearly, every value above 0 becoming 1, without a multiplication.

A pixel is 1 where any of the up to four pixels around its place in the source is 1. So the source is widened by one
pixel, and each pixel of the result is one of those. Class numbers and numbers of cells (`scale_labels`) have cells at
the same pixels: each has the number of the nearest pixel, or, where that one is background, the highest around it.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from glioma_dist.data.sample import IGNORE, cells_of
from glioma_dist.size import Size

MOST_PRODUCT = 2**21
"""Of an old and a new length up to which fp32, in which OpenCV computes places, cannot take a place between two pixels
for a pixel's own: places differ from whole numbers by 1 / (2 new) or more, and are rounded by up to old / 2^24."""
SQUARE = np.ones((2, 2), np.uint8)
NEIGHBOURS = np.ones((3, 3), np.uint8)


def scale_mask(mask: np.ndarray, size: Size, out: np.ndarray | None = None, mirror: int | None = None) -> np.ndarray:
    """Scale a mask (H, W), uint8 of 0 and 1, to `size`: the same pixels as OpenCV's bilinear scaling in fp32 gives,
    where above 0. out: to write to, (size.height, size.width) uint8, contiguous. Returns it, or a new array.

    mirror: turns the result round, as `cv2.flip`'s code says.
    """
    height, width = mask.shape
    rows, columns = _places(height, size.height), _places(width, size.width)
    if rows is None or columns is None:
        scaled = cv2.resize(mask.astype(np.float32), (size.width, size.height), interpolation=cv2.INTER_LINEAR)
        scaled = scaled if mirror is None else cv2.flip(scaled, mirror)
        return np.greater(scaled, 0, out=None if out is None else out.view(bool)).view(np.uint8)
    rows = rows[::-1] if mirror in (0, -1) else rows
    columns = columns[::-1] if mirror in (1, -1) else columns
    # (H + 1, W + 1): number (y, x) is 1 where any of the four pixels that meet at the corner (y, x) is.
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    corners = cv2.dilate(framed, SQUARE)[1:, 1:]
    # Whole rows are copied far quicker than pixels one by one are, so columns are taken as rows.
    stretched = cv2.transpose(cv2.transpose(corners).take(columns, axis=0))
    # "clip" (nothing is outside) because otherwise numpy writes to a copy of `out` first.
    return stretched.take(rows, axis=0, out=out, mode="clip")


def scale_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Scale a mask of class numbers (H, W) uint8, or such a mask with its numbers of cells, (H, W, 2) uint16. A pixel
    whose nearest one is ignored is ignored."""
    mask, *others = (labels,) if labels.ndim == 2 else cv2.split(labels)
    is_cell = cells_of(mask)
    cells = scale_mask(is_cell.view(np.uint8), size)
    rows, columns = _nearest(mask.shape[0], size.height), _nearest(mask.shape[1], size.width)
    ignored = None
    if mask.max(initial=0) == IGNORE:
        ignored = mask.take(rows, axis=0).take(columns, axis=1) == IGNORE
        cells[ignored] = 0
        mask = mask * is_cell
    is_binary = mask.max(initial=0) <= 1  # then the cells' pixels are all there is to know
    scaled = cells.astype(mask.dtype) if is_binary else _scale_numbers(mask, cells, rows, columns)
    mask, *others = (scaled, *(_scale_numbers(plane, cells, rows, columns) for plane in others))
    if ignored is not None:
        mask[ignored] = IGNORE
    return mask if labels.ndim == 2 else cv2.merge([mask, *others])


def _scale_numbers(numbers: np.ndarray, cells: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Scale numbers of classes or cells (H, W), 0 elsewhere. cells: 1 where the result is not 0; rows, columns: the
    nearest of each of its rows and columns."""
    scaled = numbers.take(rows, axis=0).take(columns, axis=1)
    scaled *= cells
    # Several times quicker than np.nonzero of two dimensions.
    row, column = np.divmod(np.flatnonzero(cells > scaled), scaled.shape[1])
    scaled[row, column] = cv2.dilate(numbers, NEIGHBOURS)[rows[row], columns[column]]
    return scaled


@lru_cache(maxsize=512)
def _nearest(old: int, new: int) -> np.ndarray:
    """Which of `old` pixels is the nearest of each of `new`: (new,) int64. OpenCV's own places, even those of its exact
    scaling, are rounded, and take another pixel here and there."""
    places = (2 * np.arange(new) + 1) * old // (2 * new)
    places.flags.writeable = False
    return places


@lru_cache(maxsize=512)
def _places(old: int, new: int) -> np.ndarray | None:
    """Between which two of `old` pixels each of `new` lies: (new,) int64, k where between k - 1 and k, 0 and `old`
    beyond the first and the last. None where one may lie on a pixel, for then it depends on the last bits of OpenCV's
    sums whether its neighbour counts."""
    twice = (2 * np.arange(new) + 1) * old - new  # the place, times 2 new
    first, rest = np.divmod(twice, 2 * new)
    if old * new > MOST_PRODUCT or not rest.all():
        return None
    places = (first + 1).clip(0, old)
    places.flags.writeable = False
    return places
