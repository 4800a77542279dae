"""A picture that is read by rows, from memory or from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from glioma_dist.data.images.value_range import count_values, range_of
from glioma_dist.data.transforms import IntensityNormalization, look_up, normalize_intensity, table_of
from glioma_dist.errors import InputError

BLOCK_BYTES = 2**26
"""Of the rows that are read at once where a whole picture is gone through."""


class LazyPicture(Protocol):
    """Pixels (H, W) or (H, W, 3). An array of numpy is made one by `ArrayPicture`."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to before `stop`: (rows, W) or (rows, W, 3)."""


class ArrayPicture:
    """A picture in an array, or in anything whose rows can be sliced."""

    def __init__(self, pixels: Any) -> None:
        self.pixels, self.shape, self.dtype = pixels, tuple(pixels.shape), np.dtype(pixels.dtype)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """As `LazyPicture.rows`."""
        return np.asarray(self.pixels[start:stop])

    def __getitem__(self, wanted: Any) -> np.ndarray:
        return np.asarray(self.pixels[wanted])


class MappedPicture:
    """A picture of whose rows a function makes others, as many and as wide: one channel of three, for example."""

    def __init__(self, picture: LazyPicture, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.picture, self.function = picture, function
        first = self.rows(0, 1)
        self.shape, self.dtype = (picture.shape[0], *first.shape[1:]), first.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """As `LazyPicture.rows`."""
        return self.function(self.picture.rows(start, stop))


class StretchedPicture:
    """A picture whose values go through a table as they are read: uint8."""

    dtype = np.dtype(np.uint8)

    def __init__(self, picture: LazyPicture, table: np.ndarray) -> None:
        self.picture, self.table, self.shape, self.ndim = picture, table, picture.shape, len(picture.shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """As `LazyPicture.rows`."""
        return look_up(np.ascontiguousarray(self.picture.rows(start, stop)), self.table)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> np.ndarray:
        """Rows by a slice, and columns and channels of them, as an array's."""
        rows, *rest = wanted if isinstance(wanted, tuple) else (wanted,)
        if not isinstance(rows, slice):
            number = range(len(self))[rows]
            found = self.rows(number, number + 1)[0]
            return found[tuple(rest)] if rest else found
        start, stop, step = rows.indices(len(self))
        if step < 0:
            raise ValueError("rows are read from the first to the last")
        return self.rows(start, max(start, stop))[(slice(None, None, step), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.rows(0, len(self)).astype(dtype or self.dtype, copy=False)


def stretched(picture: LazyPicture, how: IntensityNormalization, where: str) -> StretchedPicture:
    """Return a picture whose contrast is stretched as it is read by rows, bit-identical to `normalize_intensity`.

    Raises InputError for clahe, whose tables are of parts of the whole picture.
    """
    num_values = np.iinfo(picture.dtype).max + 1
    if how == "none":
        return StretchedPicture(picture, normalize_intensity(np.arange(num_values).astype(picture.dtype), "none"))
    if how == "clahe":
        raise InputError(
            f"{where}: too large to be held in memory, and this checkpoint was trained with "
            "--data.intensity-normalization clahe, which needs that; give more --memory, or cut it into smaller images"
        )
    counts = np.zeros(num_values, np.int64)
    for block in blocks(picture):
        counts += count_values(np.ascontiguousarray(block), num_values)
    return StretchedPicture(picture, table_of(range_of(counts), num_values))


def blocks(picture: LazyPicture) -> Iterator[np.ndarray]:
    """Yield all rows of a picture, some at a time."""
    row_bytes = max(1, int(np.prod(picture.shape[1:])) * picture.dtype.itemsize)
    step = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, picture.shape[0], step):
        yield picture.rows(start, min(start + step, picture.shape[0]))
