"""A TIFF too large to be decoded at once, decoded some rows at a time: tiles or strips one after another."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import tifffile

from glioma_dist.data.images import tiff_directories as tag
from glioma_dist.data.images.limits import COPY_AGAIN, check_ratio
from glioma_dist.data.images.tiff import (
    MIRRORED_BYTES,
    NO_COMPRESSION,
    _byte_counts,
    _cannot_decode,
    _check_predictor,
    _check_streams,
    _check_tiles,
    _open_page,
    orientation_of,
)
from glioma_dist.data.images.tiff_colours import check_colours, to_image
from glioma_dist.data.images.tiff_directories import Directory, read_directories, read_directory
from glioma_dist.data.images.tiff_stacks import single_page
from glioma_dist.errors import InputError

MAX_LARGE_PIXELS = 2**36
"""Of a picture that is read by rows: 262,144 x 262,144."""
MAX_CHUNK_BYTES = 2**28
"""Decoded, of a compressed tile or strip, which is decoded at once."""
BAND_BYTES = 2**25
"""Of rows that are read at once where they are not compressed, and of compressed bytes that are read at once."""


class TiffRows:
    """A page of an open TIFF. Iterating gives its rows from top to bottom, some at a time, as `decode_tiff_file` would
    give the whole: uint8 or uint16, (rows, W) or (rows, W, 3). notes, orientation: complete at the end."""

    def __init__(self, file: BinaryIO, num_bytes: int, where: str, offset: int | None = None) -> None:
        """offset: where the page's directory begins; None: the file's only picture. Raises InputError."""
        self._file, self._num_bytes, self._where = file, num_bytes, where
        if offset is None:
            directories = read_directories(file, num_bytes, where)
            self._page = directories.pages[single_page(directories, where)]
        else:
            self._page = read_directory(file, num_bytes, offset, where)
        self.notes = check_colours(self._page, where)
        self.orientation = orientation_of(self._page)
        self.size = large_size(self._page, where)
        width, length = self.size
        bits = max(self._page.numbers(tag.BITS) or (1,))
        if bits >= 8:
            check_ratio(width * length * self._page.number(tag.SAMPLES, 1) * math.ceil(bits / 8), num_bytes, where)
        _check_tiles(self._page, where)
        if bits < 8:
            raise InputError(f"{where}: a large picture of {bits} bits a pixel; save it as 8 bit")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Raises InputError where pixels are missing or cannot be decoded."""
        self._file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with tifffile.TiffFile(self._file, _multifile=False) as tiff:
                    for pixels in self._bands(_open_page(tiff, self._page)):
                        rows, notes = to_image(pixels, self._page, self._where)
                        self.notes += [note for note in notes if note not in self.notes]
                        yield rows
        except (InputError, MemoryError, GeneratorExit):
            raise
        except Exception as error:  # of whatever codec
            raise _cannot_decode(self._page, self._where, error) from None

    def _bands(self, found: tifffile.TiffPage) -> Iterator[np.ndarray]:
        """(rows, W, samples) as they are stored."""
        if found.dtype is None or found.axes not in ("YX", "YXS"):
            raise InputError(
                f"{self._where}: a large picture of axes {found.axes} and {found.bitspersample} bits; save it as grey "
                "or RGB of 8 or 16 bit, its colours beside each other"
            )
        if not found.is_tiled and found.rowsperstrip == 0:
            found.rowsperstrip = found.imagelength
        found.databytecounts, notes = _byte_counts(found, self._num_bytes, self._page, self._where)
        self.notes += notes + _check_predictor(found, self._where)
        height = found.tilelength if found.is_tiled else min(found.rowsperstrip, found.imagelength)
        width = found.tilewidth if found.is_tiled else found.imagewidth
        is_plain = found.compression == NO_COMPRESSION
        if is_plain and not found.is_tiled:
            yield from self._plain_rows(found)
            return
        num_bytes = height * width * found.samplesperpixel * found.dtype.itemsize
        if num_bytes > MAX_CHUNK_BYTES:
            raise InputError(
                f"{self._where}: one compressed {'tile' if found.is_tiled else 'strip'} of {width}x{height} pixels, "
                f"which can only be decoded at once; save it as a TIFF of tiles, or without compression"
            )
        _check_streams(found, self._page, self._file, self._where)
        yield from self._decoded_rows(found, height)

    def _plain_rows(self, found: tifffile.TiffPage) -> Iterator[np.ndarray]:
        """Strips without compression, whatever their length."""
        stored = found.dtype.newbyteorder(found.parent.byteorder)
        row_bytes = found.imagewidth * found.samplesperpixel * stored.itemsize
        for number, (offset, count) in enumerate(zip(found.dataoffsets, found.databytecounts, strict=True)):
            length = min(found.rowsperstrip, found.imagelength - number * found.rowsperstrip)
            step = max(1, BAND_BYTES // row_bytes)
            for start in range(0, length, step):
                rows = min(step, length - start)
                data = b"\0" * (rows * row_bytes)
                if count:
                    self._file.seek(offset + start * row_bytes)
                    data = self._file.read(rows * row_bytes)
                if len(data) < rows * row_bytes:
                    raise InputError(
                        f"{self._where}: the TIFF is cut short at {self._num_bytes} bytes, in strip {number}; "
                        f"{COPY_AGAIN}"
                    )
                data = data.translate(MIRRORED_BYTES) if found.fillorder == 2 else data
                values = np.frombuffer(data, stored).reshape(rows, found.imagewidth, found.samplesperpixel)
                yield values.astype(found.dtype.newbyteorder("="), copy=False)

    def _decoded_rows(self, found: tifffile.TiffPage, height: int) -> Iterator[np.ndarray]:
        """Tiles side by side, or strips."""
        band, first = None, 0
        for part, (_, _, top, left, _), shape in found.segments(maxworkers=1, buffersize=BAND_BYTES):
            if band is None or top != first:
                if band is not None:
                    yield band
                rows = min(height, found.imagelength - top)
                band, first = np.zeros((rows, found.imagewidth, found.samplesperpixel), found.dtype), top
            if part is not None:
                into = band[: shape[1], left : left + shape[2]]
                into[...] = part[0, : into.shape[0], : into.shape[1]]
        if band is not None:
            yield band


def large_size(page: Directory, where: str) -> tuple[int, int]:
    """Width and height that a page claims. Raises InputError where it is none, or beyond all bounds."""
    width, length = page.size
    if width < 1 or length < 1 or width * length > MAX_LARGE_PIXELS:
        raise InputError(f"{where}: claims {width}x{length} pixels, more than {MAX_LARGE_PIXELS} or none")
    return width, length


def size_of_tiff(file: BinaryIO, num_bytes: int, where: str, offset: int | None = None) -> tuple[int, int, int]:
    """Width, height, and bytes of a pixel, of the only picture of a TIFF, or of the page at `offset`; no pixels are
    looked at. Raises InputError where there is no such picture."""
    if offset is None:
        directories = read_directories(file, num_bytes, where)
        page = directories.pages[single_page(directories, where)]
    else:
        page = read_directory(file, num_bytes, offset, where)
    width, length = large_size(page, where)
    return width, length, page.number(tag.SAMPLES, 1) * math.ceil(max(page.numbers(tag.BITS) or (1,)) / 8)
