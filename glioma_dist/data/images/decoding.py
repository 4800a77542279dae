"""One image file, TIFF, PNG or JPEG, decoded in this process; `ImageReader` does it in another one, which may crash."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from glioma_dist.data.images.jpeg_pictures import JPEG_SIGNATURE, decode_jpeg_file
from glioma_dist.data.images.labels import HOW, to_mask, to_numbers, to_values
from glioma_dist.data.images.limits import MAX_FILE_BYTES
from glioma_dist.data.images.microscope import FORMATS, Place, decode_microscope_plane
from glioma_dist.data.images.ome_zarr import decode_zarr_plane
from glioma_dist.data.images.orientation import AS_STORED, HOW_TURNED
from glioma_dist.data.images.png import decode_png_file
from glioma_dist.data.images.png_chunks import PNG_SIGNATURE
from glioma_dist.data.images.tiff import decode_tiff_file
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_read, check_plain

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png")
JPEG_SUFFIXES = (".jpg", ".jpeg")
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, *JPEG_SUFFIXES)
"""All that is read. JPEG is taken only where it is the user's own choice: beside TIFFs it is usually a preview."""
LOSSY = "JPEG is lossy: masks are less exact than those of the microscope's own file"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OTHER_KINDS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"RIFF": "a WebP",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    **{kind.signatures[0]: kind.name for kind in FORMATS.values()},
    b"\x89HDF": "an HDF5",
    b"\x1f\x8b": "a gzip",
    b"PK\x03\x04": "a zip",
    b"%PDF": "a PDF",
}


class DecodedImage(NamedTuple):
    """pixels: as stored, uint8 or uint16, (H, W) or (H, W, 3) RGB. notes: what is odd about how the values are stored,
    in words. orientation: how the file says that the picture is to be turned, EXIF's 1 to 8 (1: not at all). num_cells:
    of a mask; None for an image."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    orientation: int = AS_STORED
    num_cells: int | None = None

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
    """Decode a TIFF, PNG or JPEG in this process; see `ImageReader.read`. `where` names the file in errors.

    reserve: called with the number of bytes that the pixels take, as the header says, before they are decoded.
    A damaged file can crash the process. Raises InputError.
    """
    suffix = os.path.splitext(where)[1].lower()
    if suffix not in PICTURE_SUFFIXES:
        raise InputError(f"{where}: not an image that can be read; use TIFF or PNG (8 or 16 bit), or JPEG")
    return _open(path, where, lambda file, num_bytes: _decode(file, num_bytes, where, suffix, reserve))


def decode_page(
    path: str | Path,
    where: str,
    reserve: Callable[[int], None],
    directory: int | None = None,
    page: int | None = None,
    is_mask: bool = False,
    sample: int | None = None,
    any_kind: bool = False,
    label: str = "",
    zarr: Sequence | None = None,
    keeps_numbers: bool = False,
    keeps_values: bool = False,
    microscope: Sequence | None = None,
    from_alpha: bool = False,
) -> DecodedImage:
    """Decode one page of an image or a mask in this process; see `Wanted`.

    A mask's pixels are uint8 (H, W), 0 and 1, or uint16 with `keeps_numbers` or `keeps_values`. reserve: see
    `decode_file`. Raises InputError.
    """
    label = label or (f"page {page}" if page is not None else "")
    where = f"{where} ({label})" if label else where
    if zarr is not None:
        group, *indices = zarr
        return DecodedImage(*decode_zarr_plane(Path(path), group, tuple(indices), where, reserve))
    if microscope is not None:
        return DecodedImage(*decode_microscope_plane(path, Place(*microscope), where, reserve))

    def decode(file: BinaryIO, num_bytes: int) -> DecodedImage:
        first = file.read(16)
        if is_mask:
            how = {"from_alpha": from_alpha, "keeps_values": keeps_values}
            labels, notes, orientation = _decode_labels(file, num_bytes, where, reserve, directory, first, **how)
            mask, num_cells, more = to_mask(labels, where)
            if keeps_numbers or keeps_values:
                mask = to_numbers(labels, where) if keeps_numbers else to_values(labels, where)
            return DecodedImage(mask, (*notes, *more), orientation, num_cells)
        if first[:4] in TIFF_SIGNATURES and (directory is not None or sample is not None):
            return DecodedImage(
                *decode_tiff_file(file, num_bytes, where, reserve, directory, sample=sample, any_kind=any_kind)
            )
        return _decode(file, num_bytes, where, os.path.splitext(path)[1].lower(), reserve, any_kind)

    return _open(path, where, decode)


def _decode_labels(
    file: BinaryIO,
    num_bytes: int,
    where: str,
    reserve: Callable[[int], None],
    directory: int | None,
    first: bytes,
    from_alpha: bool,
    keeps_values: bool,
) -> tuple[np.ndarray, tuple[str, ...], int]:
    """Values (H, W) of a mask, notes and orientation."""
    how = {"is_mask": True, "from_alpha": from_alpha}
    if first[:4] in TIFF_SIGNATURES:
        return decode_tiff_file(file, num_bytes, where, reserve, directory, **how)
    if first.startswith(PNG_SIGNATURE):
        return decode_png_file(file, num_bytes, where, reserve, keeps_values=keeps_values, **how)
    if first.startswith(JPEG_SIGNATURE):
        raise InputError(f"{where}: a mask in JPEG, which changes the labels; {HOW}")
    raise _unknown_kind(first, where, "TIFF or PNG", is_mask=True)


def _open(path: str | Path, where: str, decode: Callable[[BinaryIO, int], DecodedImage]) -> DecodedImage:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            check_plain(where, found)
            if found.st_size > MAX_FILE_BYTES:
                raise InputError(f"{where}: has {found.st_size} bytes, more than the {MAX_FILE_BYTES} that are read")
            return decode(file, found.st_size)
    except ValueError as error:  # a name with a zero byte
        raise InputError(f"{where}: cannot be the name of a file ({error})") from None
    except OSError as error:
        raise cannot_read(where, error) from None


def _open_at_once(path: str, flags: int) -> int:
    """A pipe that nobody writes to would otherwise not even open."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _decode(
    file: BinaryIO, num_bytes: int, where: str, suffix: str, reserve: Callable[[int], None], any_kind: bool = False
) -> DecodedImage:
    """By what the first bytes say; a suffix is easily wrong."""
    file.seek(0)
    first = file.read(16)
    expected = "PNG" if suffix == ".png" else "JPEG" if suffix in JPEG_SUFFIXES else "TIFF"
    if first.startswith(PNG_SIGNATURE):
        kind = "PNG"
        found = DecodedImage(*decode_png_file(file, num_bytes, where, reserve, tells_alpha=any_kind))
    elif first[:4] in TIFF_SIGNATURES:
        kind = "TIFF"
        found = DecodedImage(*decode_tiff_file(file, num_bytes, where, reserve, any_kind=any_kind))
    elif first.startswith(JPEG_SIGNATURE):
        kind = "JPEG"
        found = DecodedImage(*decode_jpeg_file(file, num_bytes, where, reserve))
        found = found._replace(notes=(*found.notes, LOSSY)) if any_kind else found
    else:
        raise _unknown_kind(first, where, expected)
    if kind != expected:
        note = f"is a {kind} by its first bytes, and read as that"
        found = found._replace(notes=(note, *found.notes))
    return found


def _unknown_kind(first: bytes, where: str, expected: str, is_mask: bool = False) -> InputError:
    """The error for a file that is none of those that are read, by its first bytes. is_mask: nor is a microscope's own
    file, under whatever name."""
    kind = next((kind for start, kind in OTHER_KINDS.items() if first.startswith(start)), None)
    suffix = next((suffix for suffix, each in FORMATS.items() if each.name == kind), None)
    if suffix is not None and not is_mask:
        return InputError(f"{where}: is {kind} by its first bytes, whatever its name; rename it to end in {suffix}")
    if kind is not None:
        return InputError(f"{where}: is {kind} by its first bytes, whatever its name; save it as TIFF or PNG")
    if not first:
        return InputError(f"{where}: is empty; copy the file again")
    return InputError(f"{where}: not a {expected} file (its first bytes are {first[:8]!r})")
