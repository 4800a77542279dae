"""A JPEG file to pixels. Its headers are looked at first: how large, of how many colours, and whether it ends."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO

import cv2
import numpy as np

from glioma_dist.data.images.jpeg import ALONE, END_OF_IMAGE, FRAMES, START_OF_IMAGE, START_OF_SCAN
from glioma_dist.data.images.limits import COPY_AGAIN, MAX_DECODED_BYTES, check_ratio, check_size
from glioma_dist.data.images.orientation import AS_STORED, exif_orientation
from glioma_dist.errors import InputError

JPEG_SIGNATURE = b"\xff\xd8\xff"
APP1 = 0xE1


def decode_jpeg_file(
    file: BinaryIO, num_bytes: int, where: str, reserve: Callable[[int], None]
) -> tuple[np.ndarray, tuple[str, ...], int]:
    """Pixels uint8, (H, W) or (H, W, 3) RGB, notes and orientation of a JPEG. Damage between its headers and its end is
    not found: JPEG has no checksums. Raises InputError."""
    if num_bytes > MAX_DECODED_BYTES:
        raise InputError(f"{where}: has {num_bytes} bytes, more than the {MAX_DECODED_BYTES} that are read of a JPEG")
    file.seek(0)
    reserve(num_bytes)
    data = file.read()
    width, height, channels, orientation = _read_headers(data, where)
    decoded = check_size(width, height, where, channels)
    check_ratio(decoded, num_bytes, where)
    reserve(num_bytes + decoded)
    flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.shape[:2] != (height, width) or pixels.dtype != np.uint8:
        raise InputError(f"{where}: the JPEG's pixels cannot be decoded: it is damaged; {COPY_AGAIN}")
    return pixels, (), orientation


def _read_headers(data: bytes, where: str) -> tuple[int, int, int, int]:
    """Width, height, number of colours and orientation. Raises InputError."""
    start, frame, orientation = 2, None, AS_STORED
    if data[:2] != bytes((0xFF, START_OF_IMAGE)):
        raise InputError(f"{where}: not a JPEG file (its first bytes are {data[:8]!r})")
    while True:
        start = data.find(0xFF, start)
        while 0 <= start < len(data) - 1 and data[start + 1] == 0xFF:  # fill bytes
            start += 1
        if start < 0 or start + 4 > len(data):
            raise InputError(f"{where}: the JPEG is cut short at {len(data)} bytes; {COPY_AGAIN}")
        marker = data[start + 1]
        start += 2
        if marker in ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, start)
        body = data[start + 2 : start + length]
        if marker in FRAMES and len(body) >= 6:
            frame = struct.unpack_from(">BHHB", body)
        elif marker == APP1 and body.startswith(b"Exif\0\0"):
            orientation = exif_orientation(body)
        start += max(length, 2)
        if marker == START_OF_SCAN:
            break
    if data.find(bytes((0xFF, END_OF_IMAGE)), start) < 0:
        raise InputError(f"{where}: the JPEG is cut short at {len(data)} bytes; {COPY_AGAIN}")
    if frame is None:
        raise InputError(f"{where}: a JPEG without a header; {COPY_AGAIN}")
    bits, height, width, channels = frame
    if bits != 8 or channels not in (1, 3):
        raise InputError(f"{where}: a JPEG of {bits} bits and {channels} colours; save it as grey or RGB of 8 bits")
    return width, height, channels, orientation
