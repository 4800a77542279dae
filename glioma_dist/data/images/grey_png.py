"""PNGs of grey images: written in bands of rows, of which any can be read without the others.

Each band begins with a row that no filter refers to another, is deflated by itself (zlib's full flush), and has an IDAT
chunk of its own; the last IDAT chunk ends the stream. So any PNG library reads the whole. A private chunk behind the
header, which others skip, says how many rows a band has, and the image's `value_range`, which else takes all pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from glioma_dist.data.images.png_chunks import PNG_GREY, PNG_SIGNATURE, PngChunks
from glioma_dist.data.images.value_range import find_range

FILTER_NONE, FILTER_UP = 0, 2
ROWS_OF_BAND = 64
BANDS = b"bnDS"
"""The private chunk. Its name says that others may skip it, and drop it when they change the pixels."""
_BANDS = struct.Struct(">BIHH")
"""Its version, the rows of a band, and the range."""
_BANDS_VERSION = 1
_HEADER_BYTES = 25
"""Of the chunk IHDR."""
ZLIB_HEADER_BYTES = 2
END_OF_DEFLATE = b"\x03\x00"
"""An empty block that is marked as the last one (RFC 1951, section 3.2.3)."""
RowChoice = Callable[[int, int], slice]
"""From an image's height and width to the rows that are needed."""


class Bands(NamedTuple):
    """What a PNG's private chunk says."""

    num_rows: int
    value_range: tuple[int, int]


def encode_in_bands(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 or uint16 image (H, W); the same image gives the same bytes."""
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 2 or not image.size:
        raise ValueError(f"a grey image is uint8 or uint16, (H, W), not {image.dtype} {image.shape}")
    (height, width), depth = image.shape, 8 * image.itemsize
    values = np.ascontiguousarray(image, image.dtype.newbyteorder(">")).view(np.uint8)
    lines = np.empty((height, 1 + values.shape[1]), np.uint8)
    lines[:, 0] = FILTER_UP
    np.subtract(values[1:], values[:-1], out=lines[1:, 1:])  # modulo 256
    lines[::ROWS_OF_BAND, 0] = FILTER_NONE
    lines[::ROWS_OF_BAND, 1:] = values[::ROWS_OF_BAND]
    # Measured on phase-contrast images (docs/log.md): quick to write and to read, and nearly the smallest.
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    packed = [
        packer.compress(lines[start : start + ROWS_OF_BAND]) + packer.flush(zlib.Z_FULL_FLUSH)
        for start in range(0, height, ROWS_OF_BAND)
    ]
    header = struct.pack(">IIBBBBB", width, height, depth, PNG_GREY, 0, 0, 0)
    bands = _BANDS.pack(_BANDS_VERSION, ROWS_OF_BAND, *find_range(image))
    parts = [
        (b"IHDR", header),
        (BANDS, bands),
        *((b"IDAT", each) for each in (*packed, packer.flush())),
        (b"IEND", b""),
    ]
    return b"".join((PNG_SIGNATURE, *(_chunk(*part) for part in parts)))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))))


def bands_of(data: bytes) -> Bands | None:
    """What the private chunk of a PNG says, whose chunks were checked (`walk_chunks`); None where it has none."""
    start = len(PNG_SIGNATURE) + _HEADER_BYTES
    if data[start : start + 8] != struct.pack(">I", _BANDS.size) + BANDS:
        return None
    version, num_rows, low, high = _BANDS.unpack_from(data, start + 8)
    return Bands(num_rows, (low, high)) if version == _BANDS_VERSION and num_rows and low <= high else None


def decode_grey(data: bytes, chunks: PngChunks, choose_rows: RowChoice | None = None) -> np.ndarray | None:
    """The image in a PNG of 8 or 16 bits a pixel, grey, each row unfiltered or the difference to the row above, as
    `encode_in_bands` writes them: a third to a half of the time that a PNG library takes. `data` is checked already.
    choose_rows: where the PNG has bands, other rows than these may hold anything. None for any other PNG, also where
    pixels are missing."""
    width, height, depth, *kind = struct.unpack_from(">IIBBBBB", data, len(PNG_SIGNATURE) + 8)
    if depth not in (8, 16) or kind != [PNG_GREY, 0, 0, 0]:
        return None
    lines = np.empty((height, 1 + width * depth // 8), np.uint8)
    rows, bands = slice(0, height), bands_of(data)
    if choose_rows is not None and bands is not None:
        rows = _read_bands(chunks.packed, bands.num_rows, choose_rows(height, width), lines)
    elif not (_inflate_to(lines, chunks.packed) and _undo_filters(lines)):
        return None
    if rows is None:
        return decode_grey(data, chunks)
    pixels = lines[:, 1:]
    if depth == 16:
        values = np.empty((height, width), np.uint16)
        values[rows] = pixels[rows].view(">u2")
        return values
    return pixels


def _read_bands(packed: list[memoryview], num_rows: int, rows: slice, lines: np.ndarray) -> slice | None:
    """Fill the bands of `lines` that have the rows. Returns all rows that are filled; None where the bands are others
    than the chunk says."""
    if len(packed) != -(-len(lines) // num_rows) + 1:
        return None
    wanted = range(len(lines))[rows]
    first, last = sorted((wanted[0], wanted[-1])) if wanted else (0, -1)
    filled = slice(first // num_rows * num_rows, min(len(lines), (last // num_rows + 1) * num_rows))
    for start in range(filled.start, filled.stop, num_rows):
        band, deflated = lines[start : start + num_rows], packed[start // num_rows]
        deflated = deflated[ZLIB_HEADER_BYTES:] if start == 0 else deflated
        if not _inflate_to(band, (deflated, END_OF_DEFLATE), raw=True) or band[0, 0] != FILTER_NONE:
            return None
        if not _undo_filters(band):
            return None
    return filled


def _undo_filters(lines: np.ndarray) -> bool:
    """Turn differences into values, in place. Returns whether there are no others than those to the row above."""
    filters, rows = lines[:, 0].tobytes(), lines[:, 1:]
    if not set(filters) <= {FILTER_NONE, FILTER_UP}:
        return False
    above = None
    for row, kind in zip(rows, filters, strict=True):
        if kind == FILTER_UP and above is not None:
            np.add(row, above, row)  # modulo 256, in place: memory once more is a third of the time
        above = row
    return True


def _inflate_to(lines: np.ndarray, packed: Iterable[bytes | memoryview], raw: bool = False) -> bool:
    """Write what a zlib stream holds, or a deflate stream (raw), to `lines`, which are contiguous. Returns whether it
    is whole and just as long."""
    from imagecodecs import DeflateError, deflate_decode  # here, because most commands need no such library

    try:
        # libdeflate: two fifths of zlib's time (docs/log.md).
        found = deflate_decode(b"".join(packed), raw=raw, out=lines.reshape(-1))
    except (DeflateError, ValueError):
        return False
    return len(found) == lines.size


def inflate(packed: Iterable[bytes | memoryview], num_bytes: int) -> np.ndarray | None:
    """What a zlib stream holds, (num_bytes,) uint8; None where it is damaged, or is not just as long."""
    found = np.empty(num_bytes, np.uint8)
    return found if _inflate_to(found, packed) else None
