"""PNG bytes to class numbers and to numbers of cells, as shards hold them."""

from __future__ import annotations

import numpy as np

from glioma_dist.data.images.png import decode_image, decode_labels, decode_mask
from glioma_dist.data.images.png_chunks import PNG_GREY, PNG_PALETTE
from glioma_dist.errors import InputError
from glioma_dist.limits import IGNORE

DEPTH, COLOUR_TYPE = 24, 25
"""Bytes of a PNG, in its header."""


def decode_classes(data: bytes, where: str, num_classes: int, has_ignore: bool) -> np.ndarray:
    """Decode a mask's PNG bytes into class numbers, uint8 (H, W): 0, 1 to `num_classes`, and IGNORE if `has_ignore`.

    One bit a pixel is 0 and 1; other PNGs are grey, or a palette's indices, of 8 bits. `where` names the bytes in the
    InputError that damaged ones, other kinds and other values raise.
    """
    if data[DEPTH : DEPTH + 1] == b"\1":
        return decode_mask(data, where)
    mask = _values(data, where, (8,))
    most = int(mask.max(initial=0))
    if most > num_classes and has_ignore:
        most = int(mask[mask != IGNORE].max(initial=0))
    if most > num_classes:
        raise InputError(f"{where}: has the value {most}, and the index names {num_classes} classes; convert it again")
    return mask


def decode_instances(data: bytes, where: str) -> np.ndarray:
    """Decode PNG bytes, grey of 8 or 16 bits, into numbers of cells, uint16 (H, W). Raises InputError as above."""
    return _values(data, where, (8, 16)).astype(np.uint16, copy=False)


def _values(data: bytes, where: str, depths: tuple[int, ...]) -> np.ndarray:
    """The values of a PNG of one channel and of so many bits."""
    kind = data[COLOUR_TYPE : COLOUR_TYPE + 1]
    # decode_image is the quicker one for grey, and checks the bytes, as decode_labels does.
    values = decode_labels(data, where) if kind == bytes([PNG_PALETTE]) else decode_image(data, where)
    if kind not in (bytes([PNG_GREY]), bytes([PNG_PALETTE])) or data[DEPTH] not in depths:
        wanted = " or ".join(map(str, depths))
        raise InputError(f"{where}: is no grey PNG of {wanted} bits, as labels are stored; convert it again")
    return np.ascontiguousarray(values)
