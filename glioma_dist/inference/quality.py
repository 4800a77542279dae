"""Flags of pictures that need a look: out of focus, edge of the plate, saturated, unlike the training data.

The limits lie between the values of good fields and those of their damaged versions (figures: docs/guides/report.md).
"""

from __future__ import annotations

import numpy as np

from glioma_dist.data.image_statistics import MIN_SIDE_PX, TrainingStatistics, every, grey, image_statistics
from glioma_dist.inference.large.picture import StretchedPicture

OUT_OF_FOCUS, PLATE_EDGE, SATURATED = "out-of-focus", "plate-edge", "saturated"
UNLIKE_TRAINING, LOW_CONTRAST = "unlike-training", "low-contrast"
FLAGS = {
    OUT_OF_FOCUS: "fine structures are weak compared with coarse ones",
    PLATE_EDGE: "a part of a side is much brighter or darker than the middle: the wall of a well, or uneven light",
    SATURATED: "many pixels have the picture's highest or lowest value",
    UNLIKE_TRAINING: "brightness, contrast or size of structures differ from the network's training images",
    LOW_CONTRAST: "fewer than 8 grey levels: nothing to see, or a mask among the images",
}
"""Flag -> what it means."""
LEAST_SHARPNESS = -1.25
"""Without training images to compare with: between real fields in focus (-1.06 and above) and T98G fields blurred by
1.5 pixels (-1.45 and below). Sharp edges alone would give -1: twice the size, twice the energy."""
SHARPNESS_MARGIN = 0.4
"""How much lower than in the training images the sharpness may be."""
BLOCKS_A_SIDE, BLOCKS_A_WINDOW = 24, 8
EDGE_LEVELS = 20
"""Grey levels of 255. Real fields have 9.5 at most, those with a wall 50 or more, a lens's shading of a half 31."""
MAX_SATURATED = 0.04
"""Share of the pixels. Real fields have 2.5 % at most, in bright round cells."""
MAX_DISTANCE = 1.0
"""How far a statistic may lie outside its range over the training images, in widths of this range."""
MIN_LEVELS = 8
MAX_SIDE_PX = 1024
"""Of the picture that brightness is looked at in: a larger one is read in steps."""


def quality_flags(pixels: np.ndarray | StretchedPicture, training: TrainingStatistics | None = None) -> tuple[str, ...]:
    """Return the names of the flags (`FLAGS`) that a picture gets.

    Args:
        pixels: uint8 or uint16, (H, W) or (H, W, 3), as taken or with its contrast stretched; also memory-mapped, or
            anything that gives arrays for slices of rows and columns.
        training: statistics of the network's training images; without them no picture is called unlike them.
    """
    steps = [-(-side // MAX_SIDE_PX) for side in pixels.shape[:2]]
    sampled = every(pixels, *steps)
    counts = np.bincount((sampled if sampled.ndim == 2 else sampled.max(axis=2)).ravel())
    counts = counts[counts > 0]
    if len(counts) < MIN_LEVELS:
        return (LOW_CONTRAST,)
    flags = []
    statistics = image_statistics(pixels)
    if statistics is not None and statistics["sharpness"] < _least_sharpness(training):
        flags.append(OUT_OF_FOCUS)
    if min(pixels.shape[:2]) >= MIN_SIDE_PX and edge_levels(grey(sampled)) > EDGE_LEVELS:
        flags.append(PLATE_EDGE)
    if max(counts[0], counts[-1]) > MAX_SATURATED * counts.sum():
        flags.append(SATURATED)
    if training is not None and training.size is not None:
        statistics = image_statistics(pixels, training.size)
    if training is not None and statistics is not None and max(training.distances(statistics).values()) > MAX_DISTANCE:
        flags.append(UNLIKE_TRAINING)
    return tuple(flags)


def edge_levels(picture: np.ndarray) -> float:
    """Return the largest difference, in grey levels, between a third of a side and the middle of the picture.

    picture: uint8, (H, W), at least 64 pixels a side. Medians of medians of blocks: cells do not change them where
    they cover less than half.
    """
    blocks = np.array(
        [
            [np.median(block) for block in np.array_split(strip, BLOCKS_A_SIDE, axis=1)]
            for strip in np.array_split(picture, BLOCKS_A_SIDE, axis=0)
        ]
    )
    sides = (blocks[0], blocks[-1], blocks[:, 0], blocks[:, -1])
    windows = [np.lib.stride_tricks.sliding_window_view(side, BLOCKS_A_WINDOW) for side in sides]
    return float(np.abs(np.median(np.concatenate(windows), axis=1) - np.median(blocks)).max())


def _least_sharpness(training: TrainingStatistics | None) -> float:
    if training is None or training.size is not None:  # whose sharpness is that of scaled images
        return LEAST_SHARPNESS
    return training.ranges["sharpness"][0] - SHARPNESS_MARGIN
