"""PNG files that say who wrote them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.inference.writers.names import MARK

TEXT = b"Software\0" + MARK.encode()
"""Of each PNG's tEXt chunk (PNG specification, section 11.3.3.2)."""
HEADER_END = 33
"""Bytes of a PNG's signature and its header."""
COLOUR_TYPE_AT, PALETTE = 9, 3
"""Place of the colour type in the header's data, and its value for pixels that are numbers of a palette (section
11.2.1)."""


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


MARK_CHUNK = _chunk(b"tEXt", TEXT)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG. pixels: uint8, (H, W) grey or (H, W, 3) BGR."""
    path.write_bytes(png_bytes(pixels))


def write_palette_png(path: Path, numbers: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> None:
    """Write a PNG whose pixels are numbers of colours. numbers: uint8 (H, W), all below len(colours)."""
    data = png_bytes(numbers)
    header = bytearray(data[8:HEADER_END])
    header[8 + COLOUR_TYPE_AT] = PALETTE  # after the chunk's length and name
    header[-4:] = struct.pack(">I", zlib.crc32(bytes(header[4:-4])))
    palette = _chunk(b"PLTE", bytes(each for colour in colours for each in colour))
    # Before the pixels, which a grey PNG of 8 bits holds in the same way.
    place = HEADER_END + len(MARK_CHUNK)
    path.write_bytes(b"".join([data[:8], bytes(header), data[HEADER_END:place], palette, data[place:]]))


def png_bytes(pixels: np.ndarray) -> bytes:
    """Encode a PNG in memory, because OpenCV crashes on file names that are not UTF-8."""
    encoded, data = cv2.imencode(".png", pixels)
    if not encoded:
        raise ValueError(f"OpenCV could not write a PNG of {pixels.dtype} {pixels.shape}")
    return b"".join([data[:HEADER_END].tobytes(), MARK_CHUNK, data[HEADER_END:].tobytes()])
