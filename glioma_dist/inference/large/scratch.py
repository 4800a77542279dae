"""Files in place of memory: maps that wait, and pictures and probabilities larger than the memory.

They are read and written, not mapped: pages of a mapped file count as resident memory of the process until the system
needs them elsewhere. The files have no name: the system removes them when the process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glioma_dist.errors import InputError
from glioma_dist.files import cannot_write

MAX_CALL = 2**30
"""Bytes of one read or write; Linux takes no more than 2^31."""


class Scratch:
    """A file without a name in `folder`. Raises InputError where it cannot be made, or the disk is full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._end = 0
        self._free: dict[int, list[int]] = {}
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise cannot_write(folder, error) from None
        self._closing = weakref.finalize(self, self._file.close)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def fileno(self) -> int:
        """Return the file descriptor, for a process that writes to it."""
        return self._file.fileno()

    def put(self, storage: torch.UntypedStorage) -> int:
        """Write the bytes of a tensor, of any device. Returns their place."""
        num_bytes = storage.nbytes()
        free = self._free.get(num_bytes)
        place = free.pop() if free else self._end
        self._end = max(self._end, place + num_bytes)
        self.write(place, _view(storage if storage.device.type == "cpu" else storage.cpu()))
        return place

    def take(self, place: int, storage: torch.UntypedStorage) -> None:
        """Read what `put` wrote, to a storage of the same size; its place becomes free."""
        on_host = storage if storage.device.type == "cpu" else torch.UntypedStorage(storage.nbytes())
        self.read(place, _view(on_host))
        if on_host is not storage:
            storage.copy_(on_host)
        self._free.setdefault(storage.nbytes(), []).append(place)

    def write(self, place: int, data: memoryview) -> None:
        """Write bytes at `place`."""
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data[:MAX_CALL], place)
                data, place = data[written:], place + written
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def read(self, place: int, data: memoryview) -> None:
        """Fill `data` with the bytes from `place` on."""
        while data:
            number = os.preadv(self._file.fileno(), [data[:MAX_CALL]], place)
            if not number:
                raise InputError(f"{self.folder}: a temporary file there is shorter than what was written to it")
            data, place = data[number:], place + number


def _view(storage: torch.UntypedStorage) -> memoryview:
    """The bytes of a tensor on the host. Not by way of numpy, after which PyTorch refuses to free them early."""
    return memoryview((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())).cast("B")


class RowFile:
    """An array of rows in a file: `array[start:stop]` reads some of them, `array[start:stop] = rows` writes.

    It has the attributes of an array that writers need. `numpy.asarray` reads all of it.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: Any, scratch: Scratch | None = None) -> None:
        """scratch: a file that holds the rows already; by default one is made in `folder`."""
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.ndim, self.size = len(shape), int(np.prod(shape, dtype=np.int64))
        self.nbytes = self.size * self.dtype.itemsize
        self._row_bytes = self.nbytes // max(1, shape[0])
        self._scratch = scratch or Scratch(folder)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> np.ndarray:
        rows, *rest = wanted if isinstance(wanted, tuple) else (wanted,)
        if isinstance(rows, int | np.integer):
            row = int(rows) + (len(self) if rows < 0 else 0)
            if not 0 <= row < len(self):
                raise IndexError(f"row {rows} of {len(self)}")
            found = self._read(row, row + 1)[0]
            return found[tuple(rest)] if rest else found
        if rows is Ellipsis:
            return self._read(0, len(self))[(..., *rest)]
        start, stop, step = rows.indices(len(self))
        if step < 0:
            return self._read(0, len(self))[(rows, *rest)]
        return self._read(start, max(start, stop))[(slice(None, None, step), *rest)]

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        start, stop, step = rows.indices(len(self))
        wanted = (max(0, stop - start), *self.shape[1:])
        if step != 1 or np.shape(values) != wanted:
            raise ValueError(f"rows {start} to {stop} of {self.shape} take {wanted}, not {np.shape(values)}")
        self._scratch.write(start * self._row_bytes, _bytes(np.ascontiguousarray(values, self.dtype)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(0, len(self)).astype(dtype or self.dtype, copy=False)

    def close(self) -> None:
        """Remove the file."""
        self._scratch.close()

    def _read(self, start: int, stop: int) -> np.ndarray:
        found = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self._scratch.read(start * self._row_bytes, _bytes(found))
        return found


def _bytes(values: np.ndarray) -> memoryview:
    return memoryview(values.reshape(-1).view(np.uint8))
