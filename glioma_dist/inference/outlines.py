"""Outlines of a mask as polygons along the pixels' edges: filled again, they give the mask pixel for pixel.

Pixels that only touch at a corner are in polygons of their own, and a ring goes through a corner once. So the polygons
are valid in the sense of OGC's Simple Features, holes included.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from glioma_dist.inference.components import FOUR, Components, block_rows

Polygon = list[np.ndarray]
"""Rings, the outer one first, then the holes: int32 (n, 2), x and y of the corners, the first not repeated. Coordinates
count pixel edges: the pixel in column 0 lies between x = 0 and x = 1. With y upwards the outer ring runs
counterclockwise and holes run clockwise, as GeoJSON asks."""


def outlines(rows: Callable[[int, int], np.ndarray], components: Components) -> list[list[Polygon]]:
    """Return the polygons of each component, in the order of the components' numbers.

    rows: the mask's rows from a first to before a last one. A component is one polygon, or several that touch at
    corners.
    """
    parts = Components(rows, components.height, components.width, FOUR)
    rings = _rings(*_corners(rows, components.height, components.width))
    found: list[list[Polygon]] = [[] for _ in range(len(components))]
    if not rings:
        return found
    x, y, outer = _anchors(rings)
    part, number = parts.at(y, x), components.at(y, x)
    polygons: dict[int, Polygon] = {}
    # Outer rings first: a hole may begin further up than the outer ring of its polygon was begun in the list.
    for each in np.argsort(~outer, kind="stable").tolist():
        ring = rings[each][::-1]
        if outer[each]:
            polygons[int(part[each])] = polygon = [ring]
            found[number[each] - 1].append(polygon)
        else:
            polygons[int(part[each])].append(ring)
    return found


def _anchors(rings: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each ring a pixel of the cells that it bounds, x and y, and whether it is an outer ring."""
    lengths = np.array([len(ring) for ring in rings])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    points = np.concatenate(rings).astype(np.int64)
    x, y = points.T
    following = np.arange(len(points)) + 1
    following[starts + lengths - 1] = starts
    area = np.add.reduceat(x * y[following] - x[following] * y, starts)
    outer = area < 0
    # The topmost corner, of those the leftmost: below and right of it is a cell, or, for a hole, above and right.
    of = np.repeat(np.arange(len(rings)), lengths)
    top = np.lexsort((x, y, of))[starts]
    return x[top], np.where(outer, y[top], y[top] - 1), outer


def _corners(
    rows: Callable[[int, int], np.ndarray], height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The corners of all outlines: y, x, whether the horizontal edge there is the one that the outline leaves by, with
    the cells on the left of its way, and whether two outlines meet there (such a corner is listed twice)."""
    found = []
    step = block_rows(width)
    for start in range(0, height + 1, step):
        stop = min(height + 1, start + step)  # of rows of corners: one more than there are rows of pixels
        pixels = np.zeros((stop - start + 1, width + 2), bool)
        first, last = max(0, start - 1), min(height, stop)
        pixels[first - start + 1 : last - start + 1, 1:-1] = np.asarray(rows(first, last)) > 0
        upper_left, upper_right = pixels[:-1, :-1], pixels[:-1, 1:]
        lower_left, lower_right = pixels[1:, :-1], pixels[1:, 1:]
        single = upper_left ^ upper_right ^ lower_left ^ lower_right
        double = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
        leaves = (upper_right & ~lower_right) | (lower_left & ~upper_left)
        y, x = np.nonzero(single | double)
        twice = double[y, x]
        out = leaves[y, x]
        found.append([np.repeat(each, 1 + twice) for each in (y + start, x, out, twice)])
    y, x, out, twice = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return y, x, out, twice


def _rings(y: np.ndarray, x: np.ndarray, leaves: np.ndarray, twice: np.ndarray) -> list[np.ndarray]:
    """Closed outlines, each int32 (n, 2) of x and y, from the corners in the order of `_corners`."""
    num = len(y)
    if num == 0:
        return []
    # Of the two outlines at a shared corner, the first listed has the edges to the left and, where the cells lie above
    # on the right and below on the left, downwards, else upwards.
    second = np.zeros(num, np.int8)
    second[1:] = twice[1:] & (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    down_first = twice & leaves
    horizontal, vertical = np.empty(num, np.int64), np.empty(num, np.int64)
    by_row = np.lexsort((second, x, y))
    horizontal[by_row[0::2]], horizontal[by_row[1::2]] = by_row[1::2], by_row[0::2]
    by_column = np.lexsort((np.where(down_first, 1 - second, second), y, x))
    vertical[by_column[0::2]], vertical[by_column[1::2]] = by_column[1::2], by_column[0::2]
    following = np.where(leaves, horizontal, vertical).tolist()
    points = np.stack([x, y], 1).astype(np.int32)
    shared = np.where(twice, y.astype(np.int64) * (int(x.max()) + 1) + x, -1).tolist()
    return [points[ring] for ring in _cycles(following, shared)]


def _cycles(following: list[int], shared: list[int]) -> list[list[int]]:
    """The cycles of a permutation, cut where one comes to a shared corner a second time.

    shared: a number of the corner for each of the two members that lie there, else -1.
    """
    seen = bytearray(len(following))
    cycles = []
    for first in range(len(following)):
        if seen[first]:
            continue
        cycle: list[int] = []
        places: dict[int, int] = {}
        member = first
        while not seen[member]:
            seen[member] = 1
            corner = shared[member]
            if corner >= 0 and corner in places:
                # What lies between the two visits is a ring of its own. The cycle continues from the first visit.
                place = places[corner]
                cycles.append(cycle[place:])
                for each in cycle[place + 1 :]:
                    if shared[each] >= 0:
                        del places[shared[each]]
                del cycle[place + 1 :]
            else:
                if corner >= 0:
                    places[corner] = len(cycle)
                cycle.append(member)
            member = following[member]
        cycles.append(cycle)
    return cycles
