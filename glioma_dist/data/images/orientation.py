"""How a picture is to be turned for display, as its file's EXIF, TIFF tag or XMP says.

Pixels are taken as they are stored: outlines in a JSON of the stored size lie on these, whatever a viewer shows.
"""

from __future__ import annotations

import io
import re

import numpy as np

from glioma_dist.data.images.tiff_directories import ORIENTATION, read_directories
from glioma_dist.errors import InputError

AS_STORED = 1
HOW_TURNED = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored and turned by 270 degrees clockwise",
    6: "turned by 90 degrees clockwise",
    7: "mirrored and turned by 90 degrees clockwise",
    8: "turned by 270 degrees clockwise",
}
"""EXIF's values (CIPA DC-008, tag 274), as the change that brings the stored picture upright."""
XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:>|=\s*[\"'])\s*([1-8])\b")
MAX_EXIF_BYTES = 2**20


def is_transposed(orientation: int) -> bool:
    """Whether an upright picture has the stored one's width as its height."""
    return orientation >= 5


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3), as stored, turned as viewers show them; (W, H) for orientations from 5 on."""
    if is_transposed(orientation):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data, which is a TIFF without pixels; 1 where it says none or is damaged."""
    exif = exif[:MAX_EXIF_BYTES].removeprefix(b"Exif\0\0")
    try:
        directories = read_directories(io.BytesIO(exif), len(exif), "EXIF")
    except InputError:
        return AS_STORED
    return valid_orientation(directories.pages[0].number(ORIENTATION, AS_STORED)) if directories.pages else AS_STORED


def xmp_orientation(xmp: bytes) -> int:
    """The orientation in XMP data; 1 where it says none."""
    found = XMP_ORIENTATION.search(xmp[:MAX_EXIF_BYTES])
    return int(found[1]) if found else AS_STORED


def valid_orientation(value: int) -> int:
    return value if value in HOW_TURNED else AS_STORED
