"""Connected components of a mask, found block by block, so that the memory does not grow with the image's height."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

BLOCK_PIXELS = 2**24
"""Of the rows that are labelled at a time: 64 MiB of labels."""
ROW_STEP = 512
"""Blocks begin at multiples of this row, as the tiles and chunks of files do."""
EIGHT, FOUR = np.ones((3, 3), bool), np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
"""Neighbours of a pixel: also the diagonal ones, or those that share an edge."""


def block_rows(width: int) -> int:
    """Return the number of rows of a block, for images of this width in pixels: a multiple of `ROW_STEP`."""
    return max(ROW_STEP, BLOCK_PIXELS // max(1, width) // ROW_STEP * ROW_STEP)


class Components:
    """The connected components of a mask, numbered from 1 in the order of their first pixels, row by row, as
    `scipy.ndimage.label` numbers them."""

    def __init__(
        self,
        rows: Callable[[int, int], np.ndarray],
        height: int,
        width: int,
        neighbours: np.ndarray = EIGHT,
        block: int | None = None,
    ) -> None:
        """rows: the mask's rows from a first to before a last one, above 0 where there is a cell. block: rows that are
        labelled at a time; by default `block_rows`."""
        self.height, self.width = height, width
        self._rows, self._neighbours = rows, neighbours
        self._block = block or block_rows(width)
        self._kept: np.ndarray | None = None
        """The labels, where the image has one block only."""
        self._offsets: list[int] = []
        """By block: how many numbers the blocks above it used."""
        self._final = np.zeros(1, np.int32)
        """Number of a component by the number that its block gave it, block after block."""
        self.areas = np.zeros(0, np.int64)
        """Pixels of each component."""
        self._find()

    def __len__(self) -> int:
        """How many there are."""
        return len(self.areas)

    @property
    def classes(self) -> np.ndarray:
        """The class of each, uint8: 1, because a mask has one."""
        return np.ones(len(self), np.uint8)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield blocks from the top: the first row, and the components' numbers, int32 (rows, width), 0 where there is
        no cell."""
        if self._kept is not None:
            yield 0, self._kept
            return
        for start, offset in zip(self._starts(), self._offsets, strict=True):
            labels, _ = self._label(start)
            labels[labels > 0] += offset
            yield start, self._final[labels]

    def at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the component numbers of some pixels, int32, in their order."""
        found = np.zeros(len(y), np.int32)
        for start, labels in self.blocks():
            here = (y >= start) & (y < start + len(labels))
            found[here] = labels[y[here] - start, x[here]]
        return found

    def _find(self) -> None:
        """Label each block by itself, and join the components that touch across the border of two blocks."""
        pairs, areas, num, above = [], [], 0, None
        for start in self._starts():
            labels, count = self._label(start)
            self._offsets.append(num)
            areas.append(np.bincount(labels.ravel(), minlength=count + 1)[1:])
            if above is not None:
                pairs += self._touching(above, np.where(labels[0] > 0, labels[0] + num, 0))
            above = np.where(labels[-1] > 0, labels[-1] + num, 0)
            num += count
        if len(self._offsets) <= 1:
            self.areas, self._kept = np.concatenate([*areas, self.areas]), labels
            return
        joined = _join(np.concatenate([*pairs, np.zeros((0, 2), np.int64)]), num)
        self._final = np.concatenate([[0], joined]).astype(np.int32)
        # Counts below 2^53 are exact in float64.
        self.areas = np.bincount(joined, np.concatenate(areas), minlength=1)[1:].astype(np.int64)

    def _touching(self, above: np.ndarray, below: np.ndarray) -> list[np.ndarray]:
        """Pairs of numbers, (n, 2), of which pixels in two adjacent rows are neighbours."""
        shifts = (-1, 0, 1) if self._neighbours[0, 0] else (0,)
        found = []
        for shift in shifts:
            upper = above[max(0, -shift) : self.width - max(0, shift)]
            lower = below[max(0, shift) : self.width - max(0, -shift)]
            both = (upper > 0) & (lower > 0)
            found.append(np.unique(np.stack([upper[both], lower[both]], 1), axis=0))
        return found

    def _starts(self) -> range:
        return range(0, self.height, self._block)

    def _label(self, start: int) -> tuple[np.ndarray, int]:
        from scipy import ndimage

        rows = np.asarray(self._rows(start, min(self.height, start + self._block)))
        labels = np.empty(rows.shape, np.int32)
        return labels, ndimage.label(rows, self._neighbours, labels)


class RowReader:
    """Rows of an image that comes in blocks from the top, for whoever wants other numbers of rows at a time."""

    def __init__(self, blocks: Iterator[tuple[int, np.ndarray]]) -> None:
        self._blocks = blocks
        self._start, self._block = next(blocks)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to before `stop`; `start` must be the last call's `stop`."""
        parts = []
        while start < stop:
            while start >= self._start + len(self._block):
                self._start, self._block = next(self._blocks)
            parts.append(self._block[start - self._start : stop - self._start])
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _join(pairs: np.ndarray, num: int) -> np.ndarray:
    """For each of the numbers 1 to `num`: that of its set, from 1, where the numbers of a pair are in one set. Sets are
    numbered in the order of their smallest members."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0] - 1, pairs[:, 1] - 1)), (num, num))
    _, sets = connected_components(graph, directed=False)
    _, first = np.unique(sets, return_index=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1)
    return rank[sets]
