"""The process that decodes a picture too large for the memory, row by row, into an open file.

A damaged picture can crash its decoder, so it is decoded here and not in the process that computes. It is started as
`python -P -c "…; from glioma_dist.data.images.row_worker import serve; serve(descriptor, request)"`, writes the rows to
the descriptor, and after each some a line of JSON to its standard output: {"rows": so many}, at last {"shape": …,
"dtype": …, "notes": …, "orientation": …}, or {"error": …}. It imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from glioma_dist.data.images.worker import limit_memory
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_read

BAND_BYTES, MAX_BAND_BYTES = 2**25, 2**27
MAX_NOTES = 20


def serve(descriptor: int, request: str) -> None:
    """Decode what a request of JSON names: {"path", "where"}, and "directory" of a TIFF's page, "zarr" of a plane of
    an OME-Zarr, or "microscope" of one of a microscope's file, as `worker.Wanted` has them."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = _decode(descriptor, json.loads(request))
    except InputError as error:
        answer = {"error": str(error)[:4000]}
    except MemoryError:
        where = json.loads(request)["where"]
        answer = {"error": f"{where}: takes far more memory to decode than it says; it is damaged, or of a rare kind"}
    except OSError as error:  # of the file that is written
        answer = {"full": error.errno, "error": os.strerror(error.errno or 0)}
    _tell(answer)


def _decode(descriptor: int, request: dict[str, Any]) -> dict[str, Any]:
    limit_memory(2**28)
    shape, kind, place = None, None, 0
    notes: list[str] = []
    for rows in _rows(request, notes):
        if shape is not None and (rows.shape[1:] != shape[1:] or rows.dtype != kind):
            raise InputError(f"{request['where']}: damaged: its parts are of different kinds")
        shape, kind = (place, *rows.shape[1:]), rows.dtype
        data = memoryview(np.ascontiguousarray(rows)).cast("B")
        row_bytes = len(data) // max(1, len(rows))
        at, place = place * row_bytes, place + len(rows)
        while data:
            written = os.pwrite(descriptor, data[: 2**30], at)
            data, at = data[written:], at + written
        _tell({"rows": place})
    orientation = notes.pop() if notes else 1
    return {
        "shape": [place, *shape[1:]],
        "dtype": kind.name,
        "notes": [str(note)[:1000] for note in notes[:MAX_NOTES]],
        "orientation": orientation,
    }


def _rows(request: dict[str, Any], notes: list) -> Iterator[np.ndarray]:
    if request.get("zarr"):
        return _zarr_rows(request)
    return _microscope_rows(request) if request.get("microscope") else _tiff_rows(request, notes)


def _tiff_rows(request: dict[str, Any], notes: list) -> Iterator[np.ndarray]:
    """Rows; at the end `notes` has the notes, and behind them the orientation."""
    from glioma_dist.data.images.tiff_rows import TiffRows

    try:
        with open(request["path"], "rb") as file:
            found = TiffRows(file, os.fstat(file.fileno()).st_size, request["where"], request.get("directory"))
            height = found.size[1]
            number = 0
            for rows in found:
                number += len(rows)
                yield rows
            if number != height:
                raise InputError(f"{request['where']}: has {number} of {height} rows; it is damaged")
            notes += [*found.notes, found.orientation]
    except OSError as error:
        raise cannot_read(request["where"], error) from None


def _zarr_rows(request: dict[str, Any]) -> Iterator[np.ndarray]:
    """Rows of a plane of an OME-Zarr, a row of chunks or less at a time."""
    from pathlib import Path

    from glioma_dist.data.images.ome_zarr import open_ome_zarr

    group, t, c, z = request["zarr"]
    image = open_ome_zarr(Path(request["path"]), group)
    height, width = image.shape[-2:]
    kind = image.array.dtype
    if kind.kind != "u" or kind.itemsize > 2:
        raise InputError(f"{request['where']}: a large picture of {kind.name}; save it as 8 or 16 bit, unsigned")
    missing, number = image.array.check_chunks(image.selection(t, c, z), request["where"])
    if missing == number:
        raise InputError(f"{request['where']}: none of its {number} chunks are there: not taken yet, or lost")
    limit_memory(2**29 + 2 * image.array.chunk_bytes)
    step, chunk = max(1, BAND_BYTES // (width * kind.itemsize)), image.array.chunks[-2]
    if chunk * width * kind.itemsize <= MAX_BAND_BYTES:  # each chunk is decoded once
        step = max(1, step // chunk) * chunk
    for start in range(0, height, step):
        yield image.read(t, c, z, slice(start, min(start + step, height)), slice(0, width))


def _microscope_rows(request: dict[str, Any]) -> Iterator[np.ndarray]:
    """Rows of a plane of a microscope's file, some at a time."""
    from glioma_dist.data.images.microscope import Place, open_microscope, read_rows

    place, where = Place(*request["microscope"]), request["where"]
    with open_microscope(request["path"], where) as file:
        limit_memory(2**29)  # and not what its library took to be imported
        step = max(1, BAND_BYTES // max(1, place.width * place.pixel_bytes))
        for start in range(0, place.height, step):
            rows = read_rows(file, place, slice(start, min(start + step, place.height)), where)
            if rows.dtype not in (np.uint8, np.uint16):
                raise InputError(f"{where}: a large picture of {rows.dtype.name}; save it as 8 or 16 bit, unsigned")
            yield rows


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
