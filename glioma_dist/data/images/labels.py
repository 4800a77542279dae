"""Masks that people and programs save: pixels of any kind of whole numbers, where 0 is background, to 0 and 1."""

from __future__ import annotations

import cv2
import numpy as np

from glioma_dist.data.images import tiff_directories as tag
from glioma_dist.data.images.tiff_colours import OTHER_COLOURS, PALETTE, WHITE_IS_ZERO, YCBCR
from glioma_dist.data.images.tiff_directories import Directory
from glioma_dist.errors import InputError
from glioma_dist.limits import MAX_INSTANCES

LOSSY = (6, 7, 33007)
"""TIFF compressions by JPEG, which changes labels."""
COMPLEX_FORMATS = (5, 6)
MAX_LABEL = 2**53
"""The largest whole number that every kind of pixel can hold."""
HOW = "save the mask as a grey PNG or TIFF of 0 and 255, or of one number a cell (Fiji: Image > Type > 8-bit or 16-bit)"
NOT_BLACK = "shows 0 in another colour than black; its values are taken as stored: 0 is background"
MOSTLY, FEW_VALUES = 0.5, 10
"""Where the highest value covers so much of a mask, and there are more than so many others, it was smoothed."""


def check_labels(page: Directory, where: str) -> list[str]:
    """Refuse, before any pixel is decoded, a page that cannot be a mask. Returns notes. Raises InputError."""
    if page.number(tag.COMPRESSION, 1) in LOSSY:
        raise InputError(f"{where}: a mask in JPEG, which changes the labels; {HOW}")
    photometric = page.number(tag.PHOTOMETRIC, WHITE_IS_ZERO)
    if photometric in OTHER_COLOURS or photometric == YCBCR:
        name = OTHER_COLOURS.get(photometric, "YCbCr")
        raise InputError(f"{where}: a mask whose colours are {name}; {HOW}")
    if set(page.numbers(tag.SAMPLE_FORMAT)) & set(COMPLEX_FORMATS):
        raise InputError(f"{where}: a mask of complex numbers; {HOW}")
    colours = page.numbers(tag.COLOUR_MAP) if photometric == PALETTE else ()
    if (photometric == WHITE_IS_ZERO and tag.PHOTOMETRIC in page) or any(colours[:: max(len(colours) // 3, 1)]):
        return [NOT_BLACK]
    return []


def without_colours(values: np.ndarray, page: Directory, where: str) -> np.ndarray:
    """The labels (H, W) of a page's values, (H, W) or (H, W, S)."""
    if values.ndim == 2 or page.number(tag.PHOTOMETRIC, WHITE_IS_ZERO) == PALETTE:
        return values if values.ndim == 2 else values[..., 0]
    return grey_of(values, values.shape[2] in (2, 4), where)


def alpha_of(values: np.ndarray, has_alpha: bool, where: str) -> np.ndarray:
    """Where pixels (H, W, S), whose last channel is alpha, are at least half opaque: uint8 (H, W), 0 and 1. Raises
    InputError where there is no alpha, or all pixels have the same."""
    is_there = has_alpha and values.ndim == 3 and values.dtype.kind == "u"
    alpha = values[..., -1] if is_there else np.zeros((0, 0), np.uint8)
    if not alpha.size or alpha.min() == alpha.max():
        what = "all pixels are equally opaque" if alpha.size else "has no alpha channel (transparency)"
        raise InputError(f"{where}: {what}, so it holds no mask; save it with alpha, or omit --mask-from alpha")
    return (alpha > np.iinfo(alpha.dtype).max // 2).astype(np.uint8)


def grey_of(values: np.ndarray, has_alpha: bool, where: str) -> np.ndarray:
    """The one channel of a mask (H, W, S) whose channels are alike. Raises InputError for colours, and where its
    transparency may be the mask."""
    if has_alpha:
        alpha, values = values[..., -1], values[..., :-1]
        if alpha.size and alpha.min() != alpha.max():
            raise InputError(f"{where}: a mask whose transparency varies; {HOW}")
    first = values[..., 0]
    if any(not np.array_equal(first, values[..., channel]) for channel in range(1, values.shape[2])):
        raise InputError(f"{where}: a colour picture, not a mask (is it an overlay?); {HOW}")
    return first


def to_mask(labels: np.ndarray, where: str) -> tuple[np.ndarray, int, list[str]]:
    """From labels (H, W), bool, integers or floats, to a mask uint8 (H, W) of 0 and 1.

    Returns it, the number of cells, and notes. Cells: different values above 0; of a mask of one value, its regions
    (8-connected). Raises InputError where values are no labels.
    """
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    labels = labels.astype(labels.dtype.newbyteorder("="), copy=False)
    if labels.dtype.kind == "f":
        _check_floats(labels, where)
    elif labels.dtype.kind not in "iu":
        raise InputError(f"{where}: a mask of {labels.dtype}; {HOW}")
    if labels.dtype.kind in "if" and labels.min() < 0:
        raise InputError(f"{where}: a mask with the value {labels.min():g}, below 0; {HOW}")
    values, counts = _count(labels)
    mask = np.ascontiguousarray(labels > 0, np.uint8)
    inside = counts[values > 0]
    if len(inside) > 1 and len(inside) == len(values):
        raise InputError(
            f"{where}: no pixel of the mask is 0, the background (ilastik gives the background a number, too); save "
            "it with 0 for the background; if all of it is cells, as 0 and 255"
        )
    notes = []
    if _is_smoothed(inside):
        notes.append(
            f"{inside[-1] / inside.sum():.0%} of the mask has one value, the rest {len(inside) - 1} others: was it "
            "scaled or saved as JPEG? Every value above 0 is cell"
        )
    number = number_regions(mask).max() if len(inside) == 1 or _is_smoothed(inside) else len(inside)
    return mask, int(number), notes


def _is_smoothed(inside: np.ndarray) -> bool:
    """Whether so many pixels have values above 0, in ascending order, as in a mask that was scaled or blurred."""
    return len(inside) > FEW_VALUES and bool(inside[-1] > MOSTLY * inside.sum())


def to_numbers(labels: np.ndarray, where: str) -> np.ndarray:
    """The numbers of a label image that `to_mask` has checked, uint16 (H, W); where one is larger than 65,535, all are
    numbered again from 1, in their order. Raises InputError for more than 65,535 different ones."""
    if not labels.size or labels.max() <= MAX_INSTANCES:
        return labels.astype(np.uint16)
    values, places = np.unique(labels, return_inverse=True)
    if np.count_nonzero(values) > MAX_INSTANCES:
        raise InputError(f"{where}: has {len(values)} numbers, more than {MAX_INSTANCES}; cut it into smaller ones")
    return (places.reshape(labels.shape) + (values[0] > 0)).astype(np.uint16)


def to_values(labels: np.ndarray, where: str) -> np.ndarray:
    """The values of a mask that `to_mask` has checked, uint16 (H, W). Raises InputError for larger ones."""
    if labels.size and labels.max() > MAX_INSTANCES:
        raise InputError(
            f"{where}: a mask with the value {labels.max():g}; values of classes are up to {MAX_INSTANCES}"
        )
    return labels.astype(np.uint16)


def is_binary(labels: np.ndarray) -> bool:
    """Whether the values of labels (H, W) tell cells from background, and not one cell from another."""
    values, counts = _count(labels)
    inside = counts[values > 0]
    return len(inside) == 1 or _is_smoothed(inside)


def number_regions(mask: np.ndarray) -> np.ndarray:
    """A number, from 1, for each 8-connected region of a mask (H, W) of 0 and 1: int32 (H, W)."""
    return cv2.connectedComponents(np.ascontiguousarray(mask, np.uint8), connectivity=8)[1]


def _count(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values, and how many pixels have each."""
    if labels.dtype.kind == "f" or labels.max() >= 2**16:
        return np.unique(labels, return_counts=True)
    # A block of rows at a time: NumPy counts in 64 bits.
    counts = np.zeros(2**16, np.int64)
    for top in range(0, len(labels), 256):
        # NumPy before 2.1 does not take unsigned integers of 64 bits.
        counts += np.bincount(labels[top : top + 256].ravel().astype(np.int64, copy=False), minlength=2**16)
    values = np.flatnonzero(counts)
    return values, counts[values]


def _check_floats(labels: np.ndarray, where: str) -> None:
    """Refuse floats that are no whole numbers."""
    if not np.isfinite(labels).all():
        raise InputError(f"{where}: a mask with pixels that are no number (NaN or infinite); {HOW}")
    broken = labels[labels != np.floor(labels)]
    if broken.size:
        raise InputError(
            f"{where}: a mask with fractions, such as {broken[0]:.3g}; are these probabilities? Set a threshold (Fiji: "
            "Image > Adjust > Threshold), then save 0 and 255"
        )
    if labels.size and labels.max() > MAX_LABEL:
        raise InputError(f"{where}: a mask with the value {labels.max():g}, too large for a label; {HOW}")
