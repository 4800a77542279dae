"""The image with its cells tinted and outlined, as a PNG."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from glioma_dist.evaluation.separation import is_separable
from glioma_dist.inference.components import block_rows
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.colours import class_colour
from glioma_dist.inference.writers.names import is_large
from glioma_dist.inference.writers.png import write_png

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
    picture = overlay(pixels, mask, segmented.num_classes)
    if segmented.are_cells and factor == 1 and is_separable(*segmented.shape):
        _draw_borders(picture, segmented)
    write_png(path, np.ascontiguousarray(picture[..., ::-1]))


def reduction(height: int, width: int) -> int:
    """Return how many times smaller than the image its overlay is: 1, except for large images."""
    return -(-max(height, width) // REDUCED_SIDE) if is_large(height, width) else 1


def overlay(image: np.ndarray, mask: np.ndarray, num_classes: int = 1) -> np.ndarray:
    """Tint and outline the cells of an image. image: uint8 (H, W) or (H, W, 3); mask: uint8 (H, W), numbers of classes,
    0 where there is no cell.

    Returns uint8 (H, W, 3) RGB.
    """
    picture = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    for number in range(1, num_classes + 1):
        cells = mask if num_classes == 1 else (mask == number).astype(np.uint8)
        picture = _drawn(picture, cells, class_colour(number, num_classes))
    return picture


def _drawn(picture: np.ndarray, mask: np.ndarray, outline: tuple[int, int, int]) -> np.ndarray:
    """The picture with the cells of one class."""
    inside = mask > 0
    for channel, colour in enumerate(outline):
        tinted = ((1 - TINT) * np.arange(256, dtype=np.float64) + TINT * colour).astype(np.uint8)
        plane = picture[..., channel]
        np.copyto(plane, tinted[plane], where=inside)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, outline, _thickness(mask.shape))


def _draw_borders(picture: np.ndarray, segmented: SegmentedImage) -> None:
    """Draw lines between cells that touch, in the colour of the class."""
    regions = segmented.regions
    (_, labels), *more = regions.blocks()
    labels = np.concatenate([labels, *(each for _, each in more)])
    border = np.zeros(labels.shape, np.uint8)
    for one, other, part in (
        (labels[:-1], labels[1:], border[:-1]),
        (labels[:, :-1], labels[:, 1:], border[:, :-1]),
    ):
        part[(one != other) & (one > 0) & (other > 0)] = 1
    thickness = _thickness(labels.shape)
    border = cv2.dilate(border, np.ones((thickness, thickness), np.uint8)) > 0
    colours = [(0, 0, 0), *(class_colour(each, segmented.num_classes) for each in regions.classes.tolist())]
    drawn = border & (labels > 0)
    picture[drawn] = np.array(colours, np.uint8)[labels[drawn]]


def _thickness(shape: tuple[int, ...]) -> int:
    """Of lines, in pixels."""
    return max(1, round(max(shape) / 1000))


def _reduced(segmented: SegmentedImage, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """The image and its mask, `factor` times smaller: the mean of each square of pixels, and whether at least half of
    it belongs to cells. Rows and columns that fill no square are left out, unless there are no others."""
    height, width = (max(1, side // factor) for side in segmented.shape)
    step = max(1, block_rows(segmented.shape[1]) // factor)
    pixels, masks = [], []
    for start in range(0, height, step):
        stop = min(height, start + step)
        rows = segmented.pixel_rows(start * factor, stop * factor)[:, : width * factor]
        cells = segmented.mask_rows(start * factor, stop * factor)[:, : width * factor]
        pixels.append(cv2.resize(rows, (width, stop - start), interpolation=cv2.INTER_AREA))
        masks.append(_reduced_classes(cells, (width, stop - start), segmented.num_classes))
    return np.concatenate(pixels), np.concatenate(masks)


def _reduced_classes(classes: np.ndarray, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """Rows of a mask made smaller: a cell where at least half of the pixels are, and then of the commonest class."""
    shares = [
        cv2.resize((classes == number).astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
        for number in range(1, num_classes + 1)
    ]
    if num_classes == 1:
        return (shares[0] >= 128).astype(np.uint8)
    covered = cv2.resize((classes > 0).astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) >= 128
    return ((np.argmax(shares, axis=0) + 1) * covered).astype(np.uint8)
