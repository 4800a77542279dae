"""PNG bytes to pixels. A decoder sees only the chunks that pixels are made of, after they were checked: no colour
profile, no compressed text, no orientation, no animation."""

from __future__ import annotations

import binascii
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

import cv2
import numpy as np

from glioma_dist.data.images.grey_png import RowChoice, decode_grey, inflate
from glioma_dist.data.images.labels import NOT_BLACK, alpha_of, grey_of
from glioma_dist.data.images.limits import COPY_AGAIN, MAX_DECODED_BYTES
from glioma_dist.data.images.orientation import AS_STORED, exif_orientation, xmp_orientation
from glioma_dist.data.images.png_chunks import (
    NEEDED,
    PNG_GREY,
    PNG_GREY_ALPHA,
    PNG_PALETTE,
    PNG_RGB,
    PNG_RGB_ALPHA,
    PNG_SIGNATURE,
    PngChunks,
    only_chunks,
    walk_chunks,
)
from glioma_dist.errors import InputError

ALPHA_DROPPED = "has an alpha channel (transparency), which is not taken"
MAX_PNG_BYTES = MAX_DECODED_BYTES
MAX_TEXT_BYTES = 2**20
"""Of a compressed text that may hold an orientation, unpacked."""


def decode_png_file(
    file: BinaryIO,
    num_bytes: int,
    where: str,
    reserve: Callable[[int], None],
    is_mask: bool = False,
    tells_alpha: bool = False,
    from_alpha: bool = False,
    keeps_values: bool = False,
) -> tuple[np.ndarray, tuple[str, ...], int]:
    """Pixels, notes and orientation of a PNG; see `decoding.decode_file`. is_mask: see `decode_labels`; (H, W).
    tells_alpha: note that an alpha channel is dropped. from_alpha: see `Wanted`. keeps_values: of a mask of fewer than
    8 bits, which are not scaled then. Raises InputError."""
    if num_bytes > MAX_PNG_BYTES:
        raise InputError(f"{where}: has {num_bytes} bytes, more than the {MAX_PNG_BYTES} that are read of a PNG")
    file.seek(0)
    reserve(num_bytes)
    data = file.read()
    chunks = walk_chunks(data, where)
    counting = 4 * chunks.header.width * chunks.header.height if is_mask else 0
    reserve(num_bytes + chunks.header.num_bytes + counting)
    notes = ("is followed by another PNG in the same file, which is not read",) * (PNG_SIGNATURE in data[chunks.end :])
    if tells_alpha and chunks.header.colour_type in (PNG_GREY_ALPHA, PNG_RGB_ALPHA):
        notes = (*notes, ALPHA_DROPPED)
    if (
        is_mask
        and chunks.header.colour_type == PNG_PALETTE
        and any(data[(place := data.find(b"PLTE") + 4) : place + 3])
    ):
        notes = (*notes, NOT_BLACK)
    pixels = decode_labels(data, where, from_alpha) if is_mask else decode_image(data, where)
    if keeps_values and chunks.header.depth < 8:
        pixels //= 255 // (2**chunks.header.depth - 1)
    return pixels, notes, _orientation(data, chunks)


def decode_image(data: bytes, where: str, choose_rows: RowChoice | None = None) -> np.ndarray:
    """Decode PNG bytes into uint8 or uint16, (H, W) or (H, W, 3) RGB, as stored; alpha is dropped. Rows may lie
    apart in memory.

    choose_rows: from height and width to the rows that are needed; others may hold anything. `where` names the bytes in
    the InputError that damaged, truncated or too large ones raise.
    """
    chunks = walk_chunks(data, where)
    rows = decode_grey(data, chunks, choose_rows)
    if rows is not None:
        return rows
    # Asked for RGB, OpenCV is quicker than with its own order turned round afterwards. It turns RGB images, and no
    # others, by an orientation that the file may give.
    flags = cv2.IMREAD_UNCHANGED
    if chunks.header.colour_type == PNG_RGB:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = _decode(data, chunks, flags, where)
    if pixels.ndim == 2 or chunks.header.colour_type == PNG_RGB:
        return pixels
    if chunks.header.colour_type in (PNG_GREY, PNG_GREY_ALPHA):
        return np.ascontiguousarray(pixels[..., 0])
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def decode_mask(data: bytes, where: str) -> np.ndarray:
    """Decode a mask's PNG bytes into uint8 (H, W) of 0 and 1 (1 where a pixel is not black).

    `where` names the bytes in the InputError that damaged, truncated or too large ones raise.
    """
    chunks = walk_chunks(data, where)
    mask = _unpack_bits(data, chunks)
    if mask is not None:
        return mask
    # As it is: turned into 8 bits of grey, labels of 16 bits and faint colours would be black.
    pixels = _decode(data, chunks, cv2.IMREAD_UNCHANGED, where)
    if pixels.ndim == 3:
        pixels = pixels[..., :3].any(axis=-1)  # the fourth is alpha
    return (pixels > 0).astype(np.uint8)


def decode_labels(data: bytes, where: str, from_alpha: bool = False) -> np.ndarray:
    """Decode a mask's PNG bytes into its values, uint8 or uint16 (H, W): grey, or a palette's indices; fewer than 8
    bits are scaled to 0 to 255. from_alpha: see `alpha_of`.

    `where` names the bytes in the InputError that damaged ones and colours raise.
    """
    chunks = walk_chunks(data, where)
    if from_alpha:
        values = _decode(data, chunks, cv2.IMREAD_UNCHANGED, where)
        return alpha_of(values, chunks.header.colour_type in (PNG_GREY_ALPHA, PNG_RGB_ALPHA), where)
    if chunks.header.colour_type == PNG_PALETTE:
        # Read as grey, a palette's indices are its values.
        start = len(PNG_SIGNATURE) + 4
        head = bytearray(data[start : start + 17])
        head[13] = PNG_GREY
        head += struct.pack(">I", zlib.crc32(head))
        data = only_chunks((b"IHDR", b"IDAT", b"IEND"), b"".join((data[:start], head, data[start + 21 :])))
    values = _decode(data, chunks, cv2.IMREAD_UNCHANGED, where)
    return values if values.ndim == 2 else grey_of(values, values.shape[2] == 4, where)


def _decode(data: bytes, chunks: PngChunks, flags: int, where: str) -> np.ndarray:
    if chunks.others:
        data = only_chunks(NEEDED, data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    header = chunks.header
    expected = np.uint16 if header.depth == 16 else np.uint8
    if pixels is None or pixels.shape[:2] != (header.height, header.width) or pixels.dtype != expected:
        raise InputError(f"{where}: the PNG's pixels cannot be decoded: it is damaged; {COPY_AGAIN}")
    return pixels


def _unpack_bits(data: bytes, chunks: PngChunks) -> np.ndarray | None:
    """The mask in a PNG of one bit a pixel, grey, without filters, as `encode_mask` writes them: a quarter of the time
    that a PNG library takes. `data` is checked already. None for any other PNG, also where pixels are missing."""
    width, height, *kind = struct.unpack_from(">IIBBBBB", data, len(PNG_SIGNATURE) + 8)
    if kind != [1, PNG_GREY, 0, 0, 0] or any(name == b"tRNS" for name, *_ in chunks.others):
        return None
    row_bytes = 1 + (width + 7) // 8
    lines = inflate(chunks.packed, height * row_bytes)
    if lines is None:
        return None
    rows = lines.reshape(height, row_bytes)
    return None if rows[:, 0].any() else np.unpackbits(rows[:, 1:], axis=1, count=width)


def _orientation(data: bytes, chunks: PngChunks) -> int:
    """What the file says of how it is to be turned, in any of the places where programs write it; 1: not at all."""
    for kind, start, end in chunks.others:
        found = AS_STORED
        if kind == b"eXIf":
            found = exif_orientation(data[start:end])
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            found = _orientation_in_text(kind, data[start:end])
        if found != AS_STORED:
            return found
    return AS_STORED


def _orientation_in_text(kind: bytes, chunk: bytes) -> int:
    """In XMP, or in EXIF as hexadecimal text, as ImageMagick writes it."""
    keyword, _, rest = chunk.partition(b"\0")
    if keyword != b"XML:com.adobe.xmp" and keyword not in (b"Raw profile type exif", b"Raw profile type APP1"):
        return AS_STORED
    packed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":  # flag and method of compression, language, keyword in that language
        rest = rest[2:].split(b"\0", 2)[-1]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, MAX_TEXT_BYTES)
        except zlib.error:
            return AS_STORED
    if keyword == b"XML:com.adobe.xmp":
        return xmp_orientation(rest)
    try:
        # A newline, the profile's name, its length, then lines of hexadecimal digits.
        return exif_orientation(binascii.unhexlify(b"".join(rest.split()[2:])))
    except (binascii.Error, ValueError):
        return AS_STORED
