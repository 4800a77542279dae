"""The process in which `ImageReader` decodes: what it is asked, what it answers, and the bounds that it lives in.

Both sides send a length of 4 bytes, then JSON of that length; an image's bytes follow. It is started as
`python -P -c "…; from glioma_dist.data.images.worker import serve; serve(descriptor)"` and imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glioma_dist.errors import InputError

MAX_MESSAGE_BYTES = 2**20
SPARE_BYTES, DECODED_TIMES = 2**28, 4
"""Memory that decoding one image may take: so much, and so many times what its header says that its pixels take."""
LENGTH = struct.Struct(">I")
ALIVE_SECONDS = 5.0
"""How often the process looks whether the one that started it is still there."""


class Wanted(NamedTuple):
    """A page of an image or of a mask that is to be read. directory, page: of a stack in a TIFF, where the page's
    directory begins, in bytes, and its number from 1; None for a file of one picture.

    sample: which sample of each pixel is the channel to read, from 0; None for grey or colours. any_kind: whether
    values that are not 8 or 16 bit are brought to that; alpha and lossy files are then remarked on. label: names the
    page in errors, in place of its number. zarr: the image within the OME-Zarr `path`, and its frame, channel and
    depth, from 0. keeps_numbers, keeps_values: a mask's pixels stay the numbers of a label image, or the values of
    classes, uint16. from_alpha: a mask is where the picture is at least half opaque.
    """

    path: str | Path
    directory: int | None = None
    page: int | None = None
    is_mask: bool = False
    sample: int | None = None
    any_kind: bool = False
    label: str = ""
    zarr: tuple[str, int, int, int] | None = None
    keeps_numbers: bool = False
    keeps_values: bool = False
    from_alpha: bool = False


class NoAnswerError(Exception):
    """The other side closed the connection (`late` is False), or did not answer in time."""

    def __init__(self, late: bool) -> None:
        super().__init__("no answer in time" if late else "the connection is closed")
        self.late = late


def send(connection: socket.socket, message: dict) -> None:
    """Send a message. Raises OSError where the other side is gone."""
    data = json.dumps(message).encode()
    connection.settimeout(None)
    connection.sendall(LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket, seconds: float | None) -> dict:
    """The next message. Raises NoAnswerError."""
    deadline = None if seconds is None else time.monotonic() + seconds
    head = bytearray(LENGTH.size)
    receive_into(connection, head, deadline)
    (length,) = LENGTH.unpack(head)
    if length > MAX_MESSAGE_BYTES:
        raise NoAnswerError(late=False)
    data = bytearray(length)
    receive_into(connection, data, deadline)
    try:
        return json.loads(bytes(data))
    except ValueError:
        raise NoAnswerError(late=False) from None


def receive_into(connection: socket.socket, buffer: bytearray | memoryview, deadline: float | None) -> None:
    """Fill `buffer`. deadline: by `time.monotonic`, or None for no bound. Raises NoAnswerError."""
    view, parent = memoryview(buffer), os.getppid()
    while view:
        left = ALIVE_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise NoAnswerError(late=True)
        connection.settimeout(left)
        try:
            num_bytes = connection.recv_into(view)
        except TimeoutError:
            if deadline is None and os.getppid() != parent:
                raise NoAnswerError(late=False) from None
            continue
        except OSError:
            raise NoAnswerError(late=False) from None
        if not num_bytes:
            raise NoAnswerError(late=False)
        view = view[num_bytes:]


def serve(descriptor: int) -> None:
    """Decode what is asked for on a socket until it is closed."""
    from glioma_dist.data.images.decoding import decode_file, decode_page

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file behind
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(NoAnswerError, OSError):
        send(connection, {"ready": True})
        while True:
            request = receive(connection, None)
            how = request.get("how")
            _answer(connection, request, partial(decode_page, **how) if how else decode_file)


def _answer(connection: socket.socket, request: dict, decode_file: Callable) -> None:
    try:
        limit_memory(0)
        found = decode_file(request["path"], request["where"], limit_memory)
    except InputError as error:
        send(connection, {"error": str(error)[:4000], "is_full": False})
        return
    except MemoryError:
        error = (
            f"{request['where']}: takes far more memory to decode than its header says; it is damaged, or of a rare "
            "kind: if another program opens it, save it from there as a TIFF without compression"
        )
        send(connection, {"error": error[:4000], "is_full": True})
        return
    pixels = np.ascontiguousarray(found.pixels)
    send(
        connection,
        {
            "shape": pixels.shape,
            "dtype": pixels.dtype.name,
            "orientation": found.orientation,
            "num_cells": found.num_cells,
            "notes": [note[:1000] for note in found.notes],
        },
    )
    connection.sendall(memoryview(pixels).cast("B"))


def limit_memory(num_bytes: int) -> None:
    """Bound this process's memory for an image whose pixels take `num_bytes`, so that a file cannot fill the machine's.

    Linux counts what a process may write to; what it holds already is not part of the bound.
    """
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[5]) * os.sysconf("SC_PAGESIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = taken + SPARE_BYTES + DECODED_TIMES * num_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))
