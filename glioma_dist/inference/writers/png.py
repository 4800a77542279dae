"""PNG files that say who wrote them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.inference.writers.names import MARK

TEXT = b"Software\0" + MARK.encode()
"""Of each PNG's tEXt chunk (PNG specification, section 11.3.3.2)."""
HEADER_END = 33
"""Bytes of a PNG's signature and its header."""


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG. pixels: uint8, (H, W) grey or (H, W, 3) BGR."""
    path.write_bytes(png_bytes(pixels))


def png_bytes(pixels: np.ndarray) -> bytes:
    """Encode a PNG in memory, because OpenCV crashes on file names that are not UTF-8."""
    encoded, data = cv2.imencode(".png", pixels)
    if not encoded:
        raise ValueError(f"OpenCV could not write a PNG of {pixels.dtype} {pixels.shape}")
    chunk = b"tEXt" + TEXT
    mark = struct.pack(">I", len(TEXT)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"".join([data[:HEADER_END].tobytes(), mark, data[HEADER_END:].tobytes()])
