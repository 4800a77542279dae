"""The chunks of a PNG, walked before a decoder sees the bytes: all there, every checksum right, a sane size."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from glioma_dist.data.images.limits import COPY_AGAIN, check_ratio, check_size
from glioma_dist.errors import InputError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# PNG's colour types (PNG specification, section 11.2.1), and how many channels OpenCV makes of each.
PNG_GREY, PNG_RGB, PNG_PALETTE, PNG_GREY_ALPHA, PNG_RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {PNG_GREY: 1, PNG_RGB: 3, PNG_PALETTE: 3, PNG_GREY_ALPHA: 4, PNG_RGB_ALPHA: 4}
NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


class PngHeader(NamedTuple):
    width: int
    height: int
    depth: int
    colour_type: int

    @property
    def num_bytes(self) -> int:
        """Of the pixels as OpenCV decodes them."""
        return self.width * self.height * CHANNELS.get(self.colour_type, 4) * (2 if self.depth == 16 else 1)


class PngChunks(NamedTuple):
    """A PNG taken apart: its header, (kind, start, end) of the data of each chunk that pixels do not need, what the
    pixels are packed into, and where the PNG ends."""

    header: PngHeader
    others: list[tuple[bytes, int, int]]
    packed: list[memoryview]
    end: int


def walk_chunks(data: bytes, where: str) -> PngChunks:
    """Walk the chunks of a PNG: complete, every checksum right, a sane size, one picture.

    Some versions of OpenCV return a half-grey image for a file cut short, so its decoder is not asked.
    """
    if not data.startswith(PNG_SIGNATURE):
        raise InputError(f"{where}: not a PNG file (its first bytes are {data[:8]!r})")
    view, start, header, kind, others, packed = memoryview(data), len(PNG_SIGNATURE), None, b"", [], []
    while kind != b"IEND":
        if start + 12 > len(data):
            raise InputError(f"{where}: the PNG is cut short at {len(data)} bytes; {COPY_AGAIN}")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            raise InputError(f"{where}: the PNG is cut short at {len(data)} bytes; {COPY_AGAIN}")
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise InputError(f"{where}: the PNG is damaged (wrong checksum of the chunk at byte {start}); {COPY_AGAIN}")
        if header is None:
            header = _read_header(data, start, kind, length, where)
        elif kind == b"IDAT":
            packed.append(view[start + 8 : end - 4])
        elif kind not in NEEDED:
            others.append((kind, start + 8, end - 4))
            if kind == b"acTL" and length >= 4:
                _refuse_animation(int.from_bytes(view[start + 8 : start + 12], "big"), where)
        start = end
    if header.depth >= 8:  # of fewer bits a pixel, one byte may hold thousands
        check_ratio(header.num_bytes, len(data), where)
    return PngChunks(header, others, packed, start)


def _read_header(data: bytes, start: int, kind: bytes, length: int, where: str) -> PngHeader:
    if kind != b"IHDR" or length != 13:
        raise InputError(f"{where}: the PNG does not begin with its header: it is damaged; {COPY_AGAIN}")
    header = PngHeader(*struct.unpack_from(">IIBB", data, start + 8))
    channels = CHANNELS.get(header.colour_type, 4)
    check_size(header.width, header.height, where, channels, 2 if header.depth == 16 else 1)
    return header


def _refuse_animation(num_frames: int, where: str) -> None:
    if num_frames > 1:
        raise InputError(
            f"{where}: a stack of {num_frames} pages (an animated PNG), not one image; save each page as its own file"
        )


def only_chunks(kinds: tuple[bytes, ...], data: bytes) -> bytes:
    """The PNG with these chunks alone. Transparency is none that pixels are made of (NEEDED): alpha is dropped."""
    parts, start, kind = [data[: len(PNG_SIGNATURE)]], len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, start)
        if kind in kinds:
            parts.append(data[start : start + 12 + length])
        start += 12 + length
    return b"".join(parts)
