"""The image with its cells tinted and outlined, as a PNG."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from glioma_dist.inference.components import block_rows
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import is_large
from glioma_dist.inference.writers.png import write_png

OUTLINE_COLOUR = (255, 200, 0)
TINT = 0.15
REDUCED_SIDE = 4096
"""Longest side of the overlay of a large image, in pixels."""


def write_overlay(path: Path, segmented: SegmentedImage) -> None:
    """Write the overlay, of a large image a smaller one."""
    factor = reduction(*segmented.shape)
    if factor == 1:
        pixels, mask = segmented.pixel_rows(0, segmented.shape[0]), segmented.mask
    else:
        pixels, mask = _reduced(segmented, factor)
    write_png(path, np.ascontiguousarray(overlay(pixels, mask)[..., ::-1]))


def reduction(height: int, width: int) -> int:
    """Return how many times smaller than the image its overlay is: 1, except for large images."""
    return -(-max(height, width) // REDUCED_SIDE) if is_large(height, width) else 1


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Tint and outline the cells of an image. image: uint8 (H, W) or (H, W, 3); mask: (H, W) of 0 and 1.

    Returns uint8 (H, W, 3) RGB.
    """
    picture = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    inside = mask > 0
    for channel, colour in enumerate(OUTLINE_COLOUR):
        tinted = ((1 - TINT) * np.arange(256, dtype=np.float64) + TINT * colour).astype(np.uint8)
        plane = picture[..., channel]
        np.copyto(plane, tinted[plane], where=inside)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(mask.shape) / 1000))
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, OUTLINE_COLOUR, thickness)


def _reduced(segmented: SegmentedImage, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """The image and its mask, `factor` times smaller: the mean of each square of pixels, and whether at least half of
    it belongs to cells. Rows and columns that fill no square are left out."""
    height, width = (side // factor for side in segmented.shape)
    step = max(1, block_rows(segmented.shape[1]) // factor)
    pixels, masks = [], []
    for start in range(0, height, step):
        stop = min(height, start + step)
        rows = segmented.pixel_rows(start * factor, stop * factor)[:, : width * factor]
        cells = segmented.mask_rows(start * factor, stop * factor)[:, : width * factor]
        pixels.append(cv2.resize(rows, (width, stop - start), interpolation=cv2.INTER_AREA))
        share = cv2.resize(cells * 255, (width, stop - start), interpolation=cv2.INTER_AREA)
        masks.append((share >= 128).astype(np.uint8))
    return np.concatenate(pixels), np.concatenate(masks)
