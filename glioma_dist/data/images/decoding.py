"""One image file, TIFF or PNG, decoded in this process; `ImageReader` does it in another one, which may crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from glioma_dist.data.images.limits import MAX_FILE_BYTES
from glioma_dist.data.images.orientation import AS_STORED, HOW_TURNED
from glioma_dist.data.images.png import PNG_SIGNATURE, decode_png_file
from glioma_dist.data.images.tiff import decode_tiff_file
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_read, check_plain

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png")
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OTHER_KINDS = {
    b"\xff\xd8\xff": "a JPEG",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"RIFF": "a WebP",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"ZISRAWFILE": "a Zeiss CZI",
    b"\xda\xce\xbe\x0a": "a Nikon ND2",
    b"\x89HDF": "an HDF5",
    b"\x1f\x8b": "a gzip",
    b"PK\x03\x04": "a zip",
    b"%PDF": "a PDF",
}


class DecodedImage(NamedTuple):
    """pixels: as stored, uint8 or uint16, (H, W) or (H, W, 3) RGB. notes: what is odd about how the values are stored,
    in words. orientation: how the file says that the picture is to be turned, EXIF's 1 to 8 (1: not at all)."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    orientation: int = AS_STORED

    def remarks(self) -> list[str]:
        """All that a user should know about how the file was read, one short text each."""
        if self.orientation == AS_STORED:
            return list(self.notes)
        return [orientation_remark(self.orientation), *self.notes]


def orientation_remark(orientation: int) -> str:
    """What an orientation other than 1 says, and what was done."""
    return (
        f"orientation {orientation}: viewers show it {HOW_TURNED[orientation]}; its pixels are taken as they are stored"
    )


def decode_file(path: str | Path, where: str, reserve: Callable[[int], None]) -> DecodedImage:
    """Decode a TIFF or PNG in this process; see `ImageReader.read`. `where` names the file in errors.

    reserve: called with the number of bytes that the pixels take, as the header says, before they are decoded.
    A damaged file can crash the process. Raises InputError.
    """
    suffix = os.path.splitext(where)[1].lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"{where}: not an image that can be read; use TIFF or PNG (8 or 16 bit)")
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            check_plain(where, found)
            if found.st_size > MAX_FILE_BYTES:
                raise InputError(f"{where}: has {found.st_size} bytes, more than the {MAX_FILE_BYTES} that are read")
            return _decode(file, found.st_size, where, suffix, reserve)
    except ValueError as error:  # a name with a zero byte
        raise InputError(f"{where}: cannot be the name of a file ({error})") from None
    except OSError as error:
        raise cannot_read(where, error) from None


def _open_at_once(path: str, flags: int) -> int:
    """A pipe that nobody writes to would otherwise not even open."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _decode(file: BinaryIO, num_bytes: int, where: str, suffix: str, reserve: Callable[[int], None]) -> DecodedImage:
    """By what the first bytes say; a suffix is easily wrong."""
    first = file.read(16)
    if first.startswith(PNG_SIGNATURE):
        found = DecodedImage(*decode_png_file(file, num_bytes, where, reserve))
    elif first[:4] in TIFF_SIGNATURES:
        found = DecodedImage(*decode_tiff_file(file, num_bytes, where, reserve))
    else:
        kind = next((kind for start, kind in OTHER_KINDS.items() if first.startswith(start)), None)
        if kind is not None:
            raise InputError(f"{where}: is {kind} by its first bytes, whatever its name; save it as TIFF or PNG")
        if not first:
            raise InputError(f"{where}: is empty; copy the file again")
        expected = "PNG" if suffix == ".png" else "TIFF"
        raise InputError(f"{where}: not a {expected} file (its first bytes are {first[:8]!r})")
    is_png = first.startswith(PNG_SIGNATURE)
    if is_png != (suffix == ".png"):
        note = f"is a {'PNG' if is_png else 'TIFF'} by its first bytes, and read as that"
        found = found._replace(notes=(note, *found.notes))
    return found
