"""How large an image may be: asked of its header, before memory is taken for its pixels."""

from __future__ import annotations

from pathlib import Path

from glioma_dist.errors import InputError
from glioma_dist.limits import MAX_PIXELS

COPY_AGAIN = "copy the file again from the original"
"""Advice for a file that is damaged or cut short."""
MAX_DECODED_BYTES = 2**30
"""Of the pixels as they are stored, all channels. A header of a few bytes can promise any size."""
MAX_FILE_BYTES = 2**40
"""A time-lapse can be large. Of a TIFF only the directories and the page that is asked for are read."""
PIXEL_SIZES_UM = (1e-6, 1e6)
"""A picometre to a metre. Damaged metadata can say any number; TIFFs cannot hold all of them, and areas overflow."""
MAX_UNCHECKED_BYTES, MAX_RATIO = 2**26, 2000
"""Of more decoded bytes than these, a file must have one for so many. For an image of one colour LZW reaches 1,340,
images of cells reach 5."""


def credible_pixel_size(size_um: float | None) -> float | None:
    """A pixel's size as a file says it; None where it says none that a pixel can have."""
    return size_um if size_um is not None and PIXEL_SIZES_UM[0] <= size_um <= PIXEL_SIZES_UM[1] else None


def check_size(width: int, height: int, where: str | Path, channels: int = 1, bytes_a_sample: int = 1) -> int:
    """How many bytes the pixels take. Raises InputError for an image without pixels, or of more than is decoded."""
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise InputError(
            f"{where}: claims {width}x{height} pixels, more than {MAX_PIXELS} or none; cut it into smaller images"
        )
    num_bytes = width * height * channels * bytes_a_sample
    if num_bytes > MAX_DECODED_BYTES:
        raise InputError(
            f"{where}: claims {width}x{height} pixels of {channels} channels, {num_bytes >> 20} MiB decoded, more than "
            f"{MAX_DECODED_BYTES >> 20}; save it as grey or RGB, or cut it into smaller images"
        )
    return num_bytes


def check_ratio(num_bytes: int, num_compressed: int, where: str | Path) -> None:
    """Raises InputError where pixels of `num_bytes` are said to come from far too few compressed ones."""
    if num_bytes > MAX_UNCHECKED_BYTES and num_bytes > MAX_RATIO * num_compressed:
        raise InputError(
            f"{where}: claims {num_bytes >> 20} MiB of pixels in {num_compressed} bytes; it is damaged; {COPY_AGAIN}"
        )
