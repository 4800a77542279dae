"""Shapes of cells that are no polygons, as run lengths: label images, pieces of a mask, ellipses, rings with holes."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from glioma_dist.data.convert.cells import Rle, Segmentation, is_near


def cells_of_labels(labels: np.ndarray) -> list[Segmentation]:
    """A cell for each value above 0 of a label image (H, W) of integers, in the order of the values."""
    height, width = labels.shape
    if not labels.size:
        return []
    flat = labels.T.ravel()  # COCO's runs go down the columns
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    order = order[values[order] > 0]
    first = np.flatnonzero(np.diff(values[order], prepend=0))
    return [
        Rle((height, width), _counts(starts[runs], ends[runs], flat.size)) for runs in np.split(order, first[1:])
    ] * bool(order.size)


def pixels_at(pixels: np.ndarray, left: int, top: int, height: int, width: int) -> Rle:
    """The pixels (h, w), bool, of a cell whose upper left corner lies there in an image; those outside are cut off."""
    rows = slice(max(0, -top), max(0, height - top))
    columns = slice(max(0, -left), max(0, width - left))
    inside = pixels[rows, columns]
    edges = np.diff(np.pad(inside.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)  # of each column: where runs begin, end
    column, row = np.nonzero(edges)
    places = (column + max(0, left)) * height + row + max(0, top)
    starts, ends = places[0::2], places[1::2]
    joined = np.flatnonzero(starts[1:] == ends[:-1])  # a run to the foot of a column, and one from the next one's head
    return Rle((height, width), _counts(np.delete(starts, joined + 1), np.delete(ends, joined), height * width))


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], degrees: float, height: int, width: int
) -> Segmentation:
    """The pixels whose middle lies within an ellipse. centre, radii: x and y, in pixels. degrees: clockwise."""
    if not is_near(np.array([*centre, *radii]), height, width) or not np.isfinite(degrees):
        return [np.full(6, np.nan)]
    reach = max(radii) + 1
    left, top = (max(0, int(place - reach)) for place in centre)
    y, x = np.mgrid[top : min(height, int(centre[1] + reach) + 1), left : min(width, int(centre[0] + reach) + 1)]
    x, y, angle = x + 0.5 - centre[0], y + 0.5 - centre[1], np.deg2rad(degrees)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    # Multiplied out: a radius of 0 covers nothing.
    pixels = (along * radii[1]) ** 2 + (across * radii[0]) ** 2 < (radii[0] * radii[1]) ** 2
    return pixels_at(pixels, left, top, height, width)


def rings(polygons: list[np.ndarray], height: int, width: int) -> Segmentation:
    """The pixels that lie within an odd number of the polygons, each (x0, y0, x1, y1, …): holes stay empty."""
    drawn = [polygon for polygon in polygons if polygon.size >= 6]
    if len(drawn) < 2 or not all(is_near(polygon, height, width) for polygon in drawn):
        return drawn or polygons
    inside = np.zeros((height, width), bool)
    for runs in coco_mask.frPyObjects(drawn, height, width):
        inside ^= coco_mask.decode(runs) > 0
    return pixels_at(inside, 0, 0, height, width)


def _counts(starts: np.ndarray, ends: np.ndarray, num_pixels: int) -> np.ndarray:
    """Run lengths, background first, of runs from `starts` to before `ends`, int64."""
    edges = np.column_stack([starts, ends]).ravel()
    return np.diff(edges, prepend=0, append=num_pixels)
