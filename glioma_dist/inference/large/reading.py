"""Pictures too large for the memory: decoded once, in a process of their own, into a temporary file of plain rows."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glioma_dist.data.images.decoding import TIFF_SUFFIXES, DecodedImage
from glioma_dist.data.images.limits import MAX_DECODED_BYTES
from glioma_dist.data.images.tiff_rows import size_of_tiff
from glioma_dist.data.images.worker import Wanted
from glioma_dist.errors import InputError, UnavailableError
from glioma_dist.files import cannot_write, open_plain
from glioma_dist.inference.large.memory import resident_bytes
from glioma_dist.inference.large.scratch import RowFile, Scratch
from glioma_dist.limits import MAX_PIXELS

PROGRESS_SECONDS = 120.0
"""Without a further row. A whole picture may take hours."""
COPIES = 2.5
"""Of a picture, beside the pixels as they are stored: its contrast stretched, and what is made of both."""
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from glioma_dist.data.images.row_worker import serve; serve(int(sys.argv[1]), sys.argv[2])"
)


class LargeFile(NamedTuple):
    """A picture in a temporary file, and what is odd about how it was stored."""

    pixels: RowFile
    remarks: list[str]


def open_large(wanted: Wanted, where: str, limit: int, folder: Path) -> LargeFile | None:
    """Decode the picture that `wanted` asks for into a temporary file in `folder`, if it is too large for the reader of
    images or for the memory. Return None if it is not, or if it cannot be read: the reader of images then says why.

    limit: resident bytes that this process may take. where: names the picture in errors. Raises InputError as
    `read_large`.
    """
    path, zarr, microscope = Path(wanted.path), getattr(wanted, "zarr", None), getattr(wanted, "microscope", None)
    try:
        if zarr is not None:
            from glioma_dist.data.images.ome_zarr import open_ome_zarr

            image = open_ome_zarr(path, zarr[0])
            height, width = image.shape[-2:]
            size = width, height, image.array.dtype.itemsize
        elif microscope is not None:
            size = microscope.width, microscope.height, microscope.pixel_bytes
        elif path.suffix.lower() in TIFF_SUFFIXES:
            with open_plain(path) as file:
                size = size_of_tiff(file, os.fstat(file.fileno()).st_size, where, wanted.directory)
        else:
            return None
    except (InputError, OSError):
        return None
    if not too_large(*size, limit):
        return None
    if getattr(wanted, "sample", None) is not None:
        raise InputError(
            f"{where}: a large picture whose channels lie beside each other; save the channel as its own file"
        )
    if microscope is not None and not microscope.by_rows:
        raise InputError(
            f"{where}: a picture of {microscope.width}x{microscope.height} pixels, more than the memory, in a file "
            "that is not read in parts; give more --memory, or save it from the microscope's program as TIFF"
        )
    return read_large(path, where, folder, directory=wanted.directory, zarr=zarr, microscope=microscope)


def too_large(width: int, height: int, pixel_bytes: int, limit: int) -> bool:
    """Return whether a picture is read by rows. pixel_bytes: of a pixel as it is stored."""
    num_bytes = width * height * pixel_bytes
    return (
        width * height > MAX_PIXELS
        or num_bytes > MAX_DECODED_BYTES
        or resident_bytes() + COPIES * num_bytes > max(limit, resident_bytes() + 2**24)
    )


def read_large(path: Path, where: str, folder: Path, **how: Any) -> LargeFile:
    """Decode a picture into a temporary file in `folder`. how: as `row_worker.serve` takes it.

    Raises InputError where it is damaged, or of a kind that is not read by rows; DiskFullError; UnavailableError where
    the process cannot be started.
    """
    scratch = Scratch(folder)
    try:
        answer = _ask(scratch, {"path": os.path.abspath(path), "where": where, **how}, where)
        if "full" in answer:
            raise cannot_write(folder, OSError(answer["full"], answer["error"]))
        if "error" in answer:
            raise InputError(answer["error"])
        pixels = RowFile(folder, tuple(answer["shape"]), np.dtype(answer["dtype"]), scratch)
    except BaseException:
        scratch.close()
        raise
    told = DecodedImage(np.zeros((1, 1), np.uint8), tuple(answer["notes"]), answer["orientation"])
    return LargeFile(pixels, told.remarks())


def _ask(scratch: Scratch, request: dict[str, Any], where: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    descriptor = scratch.fileno()
    command = [sys.executable, "-P", "-c", PROGRAM, str(descriptor), json.dumps(request), json.dumps(sys.path)]
    try:
        process = subprocess.Popen(
            command,
            pass_fds=[descriptor],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise UnavailableError(f"the process that decodes images cannot be started ({error.strerror})") from None
    try:
        return _listen(process, where)
    finally:
        process.kill()
        process.stdout.close()
        process.wait(5)


def _listen(process: subprocess.Popen, where: str) -> dict[str, Any]:
    """The last message. Raises InputError where there is none."""
    rest, deadline = b"", time.monotonic() + PROGRESS_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise InputError(
                    f"{where}: no further row decoded within {PROGRESS_SECONDS:.0f} s; save it again as a TIFF of "
                    "tiles, or without compression"
                )
            data = os.read(process.stdout.fileno(), 2**16)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "rows" not in message:
                    return message
                deadline = time.monotonic() + PROGRESS_SECONDS
            if not data:
                code = process.wait(5)
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                raise InputError(
                    f"{where}: the decoder crashed on it ({how}): the file is damaged or in a rare format; if another "
                    "program can open it, save it from there as a new TIFF"
                )
