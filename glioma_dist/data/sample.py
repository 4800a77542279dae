"""One sample: an image with its mask, and the ways in and out of PNG, as shards hold them.

Images are numpy arrays as they were taken: uint8 or uint16, shape (H, W) for grey or (H, W, 3) for RGB.
Masks are uint8 arrays of 0 and 1, shape (H, W). Colours are RGB everywhere outside OpenCV's calls.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from glioma_dist.data.images.decoding import IMAGE_SUFFIXES, PICTURE_SUFFIXES
from glioma_dist.data.images.png import decode_image, decode_mask
from glioma_dist.data.images.reader import read_image

__all__ = [
    "IMAGE_SUFFIXES",
    "PICTURE_SUFFIXES",
    "Sample",
    "decode_image",
    "decode_mask",
    "encode_image",
    "encode_mask",
    "one_channel",
    "read_image",
]


@dataclass(frozen=True)
class Sample:
    """An image with its mask.

    key: names the sample inside its split; letters, digits, `_` and `-` only.
    image: uint8 or uint16, (H, W) grey or (H, W, 3) RGB.
    mask: uint8, (H, W), 1 where there is a cell.
    metadata: what `<key>.json` holds (data set, file name, width, height, group, time, num_cells, licence).
    """

    key: str
    image: np.ndarray
    mask: np.ndarray
    metadata: dict = field(default_factory=dict)


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


def _encode_png(pixels: np.ndarray, parameters: list[int]) -> bytes:
    encoded, data = cv2.imencode(".png", pixels, parameters)
    if not encoded:
        raise ValueError(f"OpenCV could not write a PNG of {pixels.dtype} {pixels.shape}")
    return data.tobytes()
