"""One sample: an image with its mask, and the ways in and out of PNG, as shards hold them.

Images are numpy arrays as they were taken: uint8 or uint16, shape (H, W) for grey or (H, W, 3) for RGB.
Masks are uint8 arrays (H, W): 0 for background, 1 for cells, or the numbers of several classes from 1 on, and IGNORE
where nobody labelled. Colours are RGB everywhere outside OpenCV's calls.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from glioma_dist.data.images.class_png import decode_classes, decode_instances
from glioma_dist.data.images.decoding import IMAGE_SUFFIXES, PICTURE_SUFFIXES
from glioma_dist.data.images.png import decode_image, decode_mask
from glioma_dist.data.images.reader import read_image
from glioma_dist.errors import InputError
from glioma_dist.limits import IGNORE, MAX_INSTANCES

__all__ = [
    "IGNORE",
    "IMAGE_SUFFIXES",
    "PICTURE_SUFFIXES",
    "Sample",
    "cells_of",
    "check_same_size",
    "decode_classes",
    "decode_image",
    "decode_instances",
    "decode_mask",
    "encode_classes",
    "encode_image",
    "encode_instances",
    "encode_mask",
    "one_channel",
    "read_image",
]


# Most rows of labels equal the row above, so their differences are runs of 0.
LABEL_PNG = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
]


@dataclass(frozen=True)
class Sample:
    """An image with its mask.

    key: names the sample inside its split; letters, digits, `_` and `-` only.
    image: uint8 or uint16, (H, W) grey or (H, W, 3) RGB.
    mask: uint8, (H, W), 1 where there is a cell, or the number of its class from 1 on; IGNORE where nobody labelled.
    metadata: what `<key>.json` holds (data set, file name, width, height, group, time, num_cells, licence).
    instances: uint16 or int32, (H, W), a number from 1 for each cell, and 0 elsewhere; None: not known, or not read.
    value_range: the image's (`find_range`), where its PNG says it; None: not known.
    """

    key: str
    image: np.ndarray
    mask: np.ndarray
    metadata: dict = field(default_factory=dict)
    instances: np.ndarray | None = None
    value_range: tuple[int, int] | None = None


def cells_of(mask: np.ndarray) -> np.ndarray:
    """Where a mask has a cell of any class: bool, of its shape."""
    return (mask > 0) & (mask != IGNORE)


def check_same_size(sample: Sample, where: str, remedy: str) -> None:
    """Raise InputError if an image and its mask or instances differ in size."""
    height, width = sample.image.shape[:2]
    for labels, name in ((sample.mask, "mask"), (sample.instances, "instances")):
        if labels is not None and labels.shape != (height, width):
            found = f"its {name} {labels.shape[1]}x{labels.shape[0]}"
            raise InputError(f"{where}: sample {sample.key}: the image is {width}x{height}, {found}; {remedy}")


def one_channel(image: np.ndarray) -> np.ndarray:
    """An image whose three channels are alike, as (H, W): a third of the work, and the network is shown the same, for
    it gets a grey image's channel three times. Any other as it is."""
    # A look at a few rows is enough to tell a real colour image.
    if image.ndim == 2 or any(not _alike(rows) for rows in (image[::256], image)):
        return image
    return np.ascontiguousarray(image[..., 0])


def _alike(image: np.ndarray) -> bool:
    first, *others = cv2.split(image)
    return all(np.array_equal(first, other) for other in others)


def encode_image(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 or uint16 image, (H, W) or (H, W, 3) RGB; the same image gives the same bytes."""
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3):
        raise ValueError(f"an image is uint8 or uint16, (H, W) or (H, W, 3), not {image.dtype} {image.shape}")
    if image.ndim == 3 and image.shape[2] != 3:
        raise ValueError(f"an image has one or three channels, not {image.shape[2]}")
    # Measured on phase-contrast images (docs/log.md): level 1 with these is quick to write and to read, and nearly the
    # smallest.
    filters, strategy = cv2.IMWRITE_PNG_FILTER_AVG, cv2.IMWRITE_PNG_STRATEGY_DEFAULT
    if image.ndim == 2:
        filters, strategy = cv2.IMWRITE_PNG_FILTER_UP, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY
    parameters = [
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
        *(cv2.IMWRITE_PNG_FILTER, filters),
        *(cv2.IMWRITE_PNG_STRATEGY, strategy),
    ]
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return _encode_png(np.ascontiguousarray(pixels), parameters)


def encode_mask(mask: np.ndarray) -> bytes:
    """PNG bytes, one bit a pixel, of a uint8 mask of 0 and 1, (H, W)."""
    if mask.dtype != np.uint8 or mask.ndim != 2 or (mask.size and mask.max() > 1):
        raise ValueError(f"a mask is uint8, (H, W), of 0 and 1, not {mask.dtype} {mask.shape}")
    parameters = [
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
        *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
        *(cv2.IMWRITE_PNG_BILEVEL, 1),
    ]
    return _encode_png(np.ascontiguousarray(mask), parameters)


def encode_classes(mask: np.ndarray) -> bytes:
    """PNG bytes of a uint8 mask (H, W): one bit a pixel as `encode_mask` where it is 0 and 1, else 8 bits."""
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise ValueError(f"a mask is uint8, (H, W), not {mask.dtype} {mask.shape}")
    return encode_mask(mask) if mask.size and mask.max() <= 1 else _encode_png(np.ascontiguousarray(mask), LABEL_PNG)


def encode_instances(instances: np.ndarray) -> bytes:
    """PNG bytes, 16 bits a pixel, of numbers of cells (H, W), any kind of integer from 0 to MAX_INSTANCES."""
    if instances.dtype.kind not in "iu" or instances.ndim != 2:
        raise ValueError(f"instances are integers, (H, W), not {instances.dtype} {instances.shape}")
    if instances.size and not 0 <= instances.min() <= instances.max() <= MAX_INSTANCES:
        raise ValueError(
            f"instances are numbered from 0 to {MAX_INSTANCES}, not {instances.min()} to {instances.max()}"
        )
    return _encode_png(np.ascontiguousarray(instances, np.uint16), LABEL_PNG)


def _encode_png(pixels: np.ndarray, parameters: list[int]) -> bytes:
    encoded, data = cv2.imencode(".png", pixels, parameters)
    if not encoded:
        raise ValueError(f"OpenCV could not write a PNG of {pixels.dtype} {pixels.shape}")
    return data.tobytes()
