"""A TIFF of one page to pixels. What its directories say is looked at first: how many pictures, how large, which kind
of numbers, and whether all of its pixels are in the file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import tifffile

from glioma_dist.data.images import tiff_directories as tag
from glioma_dist.data.images.jpeg import fault_of_jpeg, fault_of_jpeg_xr
from glioma_dist.data.images.labels import alpha_of, check_labels, without_colours
from glioma_dist.data.images.limits import COPY_AGAIN, check_ratio, check_size
from glioma_dist.data.images.lzw import is_valid_lzw
from glioma_dist.data.images.numbers import SPARE_TIMES
from glioma_dist.data.images.orientation import AS_STORED, valid_orientation, xmp_orientation
from glioma_dist.data.images.tiff_colours import check_colours, is_8_or_16_bit, to_image
from glioma_dist.data.images.tiff_directories import Directory, read_directories, read_directory
from glioma_dist.data.images.tiff_stacks import single_page
from glioma_dist.errors import InputError

NO_COMPRESSION, LZW, JPEG, JPEG_XR = 1, 5, (7, 33007), (22610, 34934)
DEFLATE, LZMA, PACKBITS, ZSTD = (8, 32946), 34925, 32773, 50000
PREDICTED = (LZW, *DEFLATE, LZMA, ZSTD)
"""Compressions whose pixels libtiff takes for differences where the tag Predictor says so."""
MIRRORED_BYTES = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
LOWEST_BIT_FIRST = 2
"""The value of the tag FillOrder whose streams have the bits of each byte in the other order."""
CHUNKY, PLANAR = 1, 2
MAX_WORDS = 160
"""Of what a library says is wrong."""


def decode_tiff_file(
    file: BinaryIO,
    num_bytes: int,
    where: str,
    reserve: Callable[[int], None],
    offset: int | None = None,
    is_mask: bool = False,
    sample: int | None = None,
    any_kind: bool = False,
    from_alpha: bool = False,
) -> tuple[np.ndarray, tuple[str, ...], int]:
    """Pixels, notes and orientation of a TIFF; see `decoding.decode_file`. num_bytes: the file's length.

    offset: where the directory of the page to take begins, in bytes; None: the file's only picture. is_mask: take
    values as they are stored, of any kind of number (H, W). sample, any_kind, from_alpha: see `Wanted`. Raises
    InputError.
    """
    if offset is None:
        directories = read_directories(file, num_bytes, where)
        page = directories.pages[single_page(directories, where)]
    else:
        page = read_directory(file, num_bytes, offset, where)
    notes = check_labels(page, where) if is_mask else check_colours(page, where, any_kind, sample is not None)
    width, length = page.size
    bits = max(page.numbers(tag.BITS) or (1,))
    decoded = check_size(width, length, where, page.number(tag.SAMPLES, 1), math.ceil(bits / 8))
    if bits >= 8:  # of fewer bits a pixel, one byte may hold thousands
        check_ratio(decoded, num_bytes, where)
    _check_tiles(page, where)
    is_scaled = any_kind and not is_mask and not is_8_or_16_bit(page)
    # Cells of a mask are counted in 32 bits.
    reserve(decoded + 2 * width * length if is_mask else decoded * (SPARE_TIMES if is_scaled else 1))
    file.seek(0)
    try:
        pixels, more = _decode(file, num_bytes, page, where, 8 if is_mask or is_scaled else 2)
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        # A damaged TIFF surfaces as whatever the parser or any of a dozen codecs happened to trip over.
        raise _cannot_decode(page, where, error) from None
    if is_mask and from_alpha:
        return alpha_of(pixels, page.number(tag.SAMPLES, 1) in (2, 4), where), (*notes, *more), orientation_of(page)
    if is_mask:
        return without_colours(pixels, page, where), (*notes, *more), orientation_of(page)
    pixels, colour_notes = to_image(pixels, page, where, sample)
    return pixels, (*notes, *more, *colour_notes), orientation_of(page)


def orientation_of(page: Directory) -> int:
    """EXIF's 1 to 8, from the TIFF's own tag, or else from its XMP."""
    found = valid_orientation(page.number(tag.ORIENTATION, AS_STORED))
    return found if found != AS_STORED else xmp_orientation(page.data(tag.XMP))


def _cannot_decode(page: Directory, where: str, error: Exception) -> InputError:
    words = (str(error) or type(error).__name__).splitlines()[0][:MAX_WORDS]
    compression = page.number(tag.COMPRESSION, NO_COMPRESSION)
    return InputError(
        f"{where}: the TIFF's pixels cannot be decoded ({words}; compression {compression}): it is damaged, or of a "
        "rare kind; if another program opens it, save it from there as a TIFF without compression"
    )


def _open_page(tiff: tifffile.TiffFile, page: Directory) -> tifffile.TiffPage:
    """A page of an open TIFF as tifffile sees it."""
    tiff.filehandle.seek(page.offset)
    return tifffile.TiffPage(tiff, 0)


def _decode(
    file: BinaryIO, num_bytes: int, page: Directory, where: str, most_bytes: int
) -> tuple[np.ndarray, list[str]]:
    """Pixels (H, W) or (H, W, S) of at most `most_bytes` a sample, and notes."""
    # tifffile logs and warns about odd metadata that does not touch the pixels.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tifffile.TiffFile(file, _multifile=False) as tiff:
            found = _open_page(tiff, page)
            if found.dtype is None:
                raise InputError(f"{where}: pixels of {found.bitspersample} bits are not read; save it as 8 or 16 bit")
            if found.axes not in ("YX", "YXS", "SYX"):
                raise InputError(f"{where}: its axes {found.axes} do not describe one image; save it as grey or RGB")
            if not found.is_tiled and found.rowsperstrip == 0:
                found.rowsperstrip = found.imagelength  # old programs write 0 where there is one strip
            found.databytecounts, notes = _byte_counts(found, num_bytes, page, where)
            notes += _check_predictor(found, where)
            _check_streams(found, page, file, where)
            try:
                pixels = found.asarray(maxworkers=1)
            except RuntimeError:  # what the codecs raise
                if found.compression not in (*DEFLATE, PACKBITS, ZSTD):
                    raise
                pixels, num_longer = _decode_long_streams(found, page, file)
                notes.append(f"{num_longer} strips or tiles hold more than their pixels; the rest of them is not read")
            pixels = np.moveaxis(pixels, 0, -1) if found.axes == "SYX" else pixels
    width, length = page.size
    samples = page.number(tag.SAMPLES, 1)
    if pixels.shape not in ((length, width), (length, width, samples)) or pixels.dtype.itemsize > most_bytes:
        raise InputError(f"{where}: damaged TIFF: its tags and its pixels do not agree; copy the file again")
    return pixels, notes


def _check_predictor(found: tifffile.TiffPage, where: str) -> list[str]:
    """Notes. Raises InputError where TIFF libraries make different pixels of the tag Predictor."""
    if found.predictor == 1 or found.compression in PREDICTED or found.compression in tifffile.TIFF.IMAGE_COMPRESSIONS:
        return []
    if found.compression != NO_COMPRESSION:
        raise InputError(
            f"{where}: a predictor with compression {int(found.compression)}, which programs read differently; save it "
            "without compression"
        )
    found.predictor = 1
    return ["names a predictor, which pixels without compression do not have; it is ignored, as libtiff does"]


def _decode_long_streams(found: tifffile.TiffPage, page: Directory, file: BinaryIO) -> tuple[np.ndarray, int]:
    """Pixels as `asarray` gives them, and how many strips or tiles unpack to more than their pixels: some programs
    fill up the last strip. tifffile gives the decoders no room for more.

    Raises RuntimeError or ValueError where a stream is damaged.
    """
    unpack, is_mirrored = tifffile.TIFF.DECOMPRESSORS[found.compression], found.fillorder == LOWEST_BIT_FIRST
    file.seek(0)
    # Opened again: its decoder is to be given what is unpacked here.
    with tifffile.TiffFile(file, _multifile=False) as tiff:
        plain = _open_page(tiff, page)
        plain.compression, plain.fillorder, plain.rowsperstrip = NO_COMPRESSION, 1, found.rowsperstrip
        result, num_longer = np.zeros(found.shaped, found.dtype), 0
        for number, (offset, count) in enumerate(zip(found.dataoffsets, found.databytecounts, strict=True)):
            if not count:
                continue
            file.seek(offset)
            data = file.read(count)
            data = unpack(data.translate(MIRRORED_BYTES) if is_mirrored else data)
            needed = _plain_bytes(found, number)
            if len(data) > needed:
                num_longer += 1
                # Deflate has a checksum. Without one a stream that is too long is damaged, but for a full strip.
                if found.compression not in DEFLATE and (found.is_tiled or len(data) != _plain_bytes(found, 0)):
                    raise ValueError(f"{len(data)} bytes in strip or tile {number}, not {needed}")
            part, (plane, depth, top, left, _), shape = plain.decode(data[:needed], number)
            into = result[plane, depth : depth + shape[0], top : top + shape[1], left : left + shape[2]]
            into[...] = part[: into.shape[0], : into.shape[1], : into.shape[2]]
    return result.reshape(found.shape), num_longer


def _check_streams(found: tifffile.TiffPage, page: Directory, file: BinaryIO, where: str) -> None:
    """Refuse streams whose decoders do not tell that they are damaged: some crash, others make pixels of whatever
    their memory holds, or of nothing."""
    if found.compression not in (LZW, *JPEG, *JPEG_XR):
        return
    for number, (offset, count) in enumerate(zip(found.dataoffsets, found.databytecounts, strict=True)):
        if not count:
            continue
        file.seek(offset)
        data = file.read(count)
        if found.compression == LZW:
            data = data.translate(MIRRORED_BYTES) if found.fillorder == LOWEST_BIT_FIRST else data
            fault = None if is_valid_lzw(data) else "are no LZW"
        elif found.compression in JPEG:
            fault = fault_of_jpeg(data, *_chunk_size(page, number))
        else:
            fault = fault_of_jpeg_xr(data)
        if fault:
            raise InputError(f"{where}: damaged TIFF: the compressed pixels at byte {offset} {fault}; {COPY_AGAIN}")


def _chunk_size(page: Directory, number: int) -> tuple[int, range, int]:
    """Width, possible heights and channels of a strip or tile: the last strip may be as long as the others."""
    # Not tifffile's numbers: where a tag is damaged they can be tuples of thousands.
    width, length = page.size
    samples = page.number(tag.SAMPLES, 1) if page.number(tag.PLANAR, CHUNKY) == CHUNKY else 1
    if tag.TILE_WIDTH in page:
        height = page.number(tag.TILE_LENGTH, 0)
        return page.number(tag.TILE_WIDTH, 0), range(height, height + 1), samples
    full = min(page.number(tag.ROWS_PER_STRIP, length) or length, length)
    rows = min(full, length - (number % math.ceil(length / full)) * full)
    return width, range(rows, full + 1), samples


def _check_tiles(page: Directory, where: str) -> None:
    """One tile is decoded at a time; it may be larger than the image."""
    if tag.TILE_WIDTH in page:
        width, length = page.number(tag.TILE_WIDTH, 0), page.number(tag.TILE_LENGTH, 0)
        bits = max(page.numbers(tag.BITS) or (1,))
        check_size(width, length, f"{where}: a tile", page.number(tag.SAMPLES, 1), math.ceil(bits / 8))
        if page.number(tag.TILE_DEPTH, 1) > 1:
            raise InputError(f"{where}: tiles of several planes: a stack of pages; save each page as its own file")


def _byte_counts(
    found: tifffile.TiffPage, num_bytes: int, page: Directory, where: str
) -> tuple[tuple[int, ...], list[str]]:
    """How many bytes of the file each strip or tile takes, corrected where the file gives none; and notes.

    Old programs write 0, or nothing, where the length follows from the image. Raises InputError where pixels are
    missing: what is cut short would be black.
    """
    offsets, counts = list(found.dataoffsets), list(found.databytecounts)
    if tag.STRIP_COUNTS not in page and tag.TILE_COUNTS not in page:
        counts = [0] * len(offsets)
    expected = math.prod(found.chunked)
    if len(offsets) != expected or len(counts) < expected:
        raise InputError(
            f"{where}: the TIFF is cut short: {len(offsets)} of {expected} strips or tiles are listed; {COPY_AGAIN}"
        )
    is_plain = found.compression == NO_COMPRESSION
    num_sparse = 0
    for number, offset in enumerate(offsets):
        if offset == 0 and counts[number] == 0:
            num_sparse += 1
            continue
        needed = _plain_bytes(found, number) if is_plain else 0
        if is_plain and (counts[number] == 0 or (expected == 1 and counts[number] != needed)):
            counts[number] = needed
        if is_plain and counts[number] > needed:
            counts[number] = needed  # the last strip is often listed as long as the others
        if not is_plain and counts[number] == 0 and expected == 1:
            counts[number] = max(0, num_bytes - offset)
        if counts[number] < max(needed, 1) or offset + counts[number] > num_bytes:
            raise InputError(
                f"{where}: the TIFF is cut short at {num_bytes} bytes: strip or tile {number} should have "
                f"{max(needed, counts[number], 1)} bytes at byte {offset}; {COPY_AGAIN}"
            )
    if num_sparse == expected:
        raise InputError(f"{where}: none of the TIFF's pixels are in the file; {COPY_AGAIN}")
    notes = [f"{num_sparse} of {expected} strips or tiles are not in the file, and read as empty"] if num_sparse else []
    return tuple(counts), notes


def _plain_bytes(found: tifffile.TiffPage, number: int) -> int:
    """How many bytes a strip or tile takes without compression; rows begin at whole bytes."""
    bits = found.bitspersample if isinstance(found.bitspersample, int) else sum(found.bitspersample)
    samples = found.samplesperpixel if found.planarconfig == CHUNKY and isinstance(found.bitspersample, int) else 1
    if found.is_tiled:
        return found.tilelength * ((found.tilewidth * samples * bits + 7) // 8)
    strips = math.ceil(found.imagelength / found.rowsperstrip)
    rows = min(found.rowsperstrip, found.imagelength - (number % strips) * found.rowsperstrip)
    return rows * ((found.imagewidth * samples * bits + 7) // 8)
