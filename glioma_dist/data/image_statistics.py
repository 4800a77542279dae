"""Simple statistics of pictures: how bright, how even and how sharp they are; and their ranges in training data.

All are taken after a stretch of the contrast (`normalize_intensity`, percentile), so neither the exposure nor the
number of bits changes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from glioma_dist.config import DataConfig
from glioma_dist.data.mixture import Shards, parts_of
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import LocalFolder
from glioma_dist.data.transforms import normalize_intensity, resize_image
from glioma_dist.errors import InputError
from glioma_dist.size import Size

MIN_SIDE_PX = 64
"""Of pictures that have statistics: the coarsest octave has structures of some 30 pixels."""
TILE_PX, TILES_A_SIDE = 512, 3
"""Of a picture larger than all its tiles together, only these tiles are looked at, evenly spread."""
BAND_ROWS = 512
NUM_IMAGES, LEAST_IMAGES, NUM_PIXELS = 32, 8, 2**25
"""Of the training data, evenly spread over them: at most so many images; of large images fewer, with about so many
pixels, but at least eight. They are looked at before the first step."""
LOW_PERCENT, HIGH_PERCENT = 5, 95
LEAST_WIDTHS = {
    "mean": 10.0,
    "standard deviation": 6.0,
    "skewness": 0.5,
    "fineness": 0.4,
    "sharpness": 0.4,
    "coarseness": 0.4,
    "structure": 0.4,
}
"""Statistic -> the least width that is given to its range, because few pictures can be alike by chance. The first two
are grey levels of 255; the last four are binary logarithms of ratios of energies."""
SIGMAS_PX = (1, 2, 4, 8)
WHITE_NOISE = np.array([1.0, 0.04706, 0.01176, 0.00294])
"""Energy of white noise in each octave, relative to the finest: sums of squares of what the filters make of one
pixel."""


@dataclass(frozen=True)
class TrainingStatistics:
    """The ranges of the statistics over a network's training images, as a checkpoint holds them."""

    num_images: int
    """How many training images were looked at."""
    size: Size | None
    """The size that every image is scaled to for the network; None where images keep their own scale."""
    ranges: dict[str, tuple[float, float]]
    """Statistic -> its 5th and its 95th percentile over these images."""

    def distances(self, statistics: Mapping[str, float]) -> dict[str, float]:
        """Statistic -> how far it lies outside its range, in widths of the range; below 0 inside."""
        return {
            name: max(low - statistics[name], statistics[name] - high) / max(high - low, LEAST_WIDTHS[name])
            for name, (low, high) in self.ranges.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """What state.json holds."""
        ranges = {name: [round(value, 4) for value in values] for name, values in self.ranges.items()}
        return {"num_images": self.num_images, "size": self.size and str(self.size), "ranges": ranges}

    @classmethod
    def from_dict(cls, content: Any) -> TrainingStatistics | None:
        """What `to_dict` gave; None for anything else, as where a checkpoint has none."""
        try:
            ranges = {name: (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
            size = content["size"] and Size.parse(content["size"])
            found = cls(int(content["num_images"]), size, ranges)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, InputError):
            return None
        is_whole = ranges.keys() == LEAST_WIDTHS.keys()
        return found if is_whole and all(math.isfinite(value) for pair in ranges.values() for value in pair) else None


def training_statistics(train: Shards, data: DataConfig) -> TrainingStatistics | None:
    """Take the statistics of at most 32 training images, evenly spread over those of local folders.

    Nothing here is random, and nothing of the run depends on it. Images at URLs are not fetched for it, and damaged or
    tiny ones are omitted. Returns None where no image is left.
    """
    readers = [reader for reader in parts_of(train) if isinstance(reader.source, LocalFolder)]
    places = [
        (reader, shard, place)
        for reader in readers
        for shard, size in enumerate(reader.shard_sizes)
        for place in _evenly(size, -(-NUM_IMAGES * size // sum(map(len, readers))))
    ]
    size = data.size if data.transform == "resize" else None
    found = []
    for number in _evenly(len(places), _how_many(places)):
        reader, shard, place = places[number]
        try:
            pixels = normalize_intensity(reader.read(shard, place, False).image, data.intensity_normalization)
        except InputError:
            continue  # training names it when it comes to it
        found.append(image_statistics(pixels, size))
    return ranges_of([each for each in found if each is not None], size)


def _how_many(places: Sequence[tuple[ShardReader, int, int]]) -> int:
    """How many images are looked at, by the size of the first that can be read."""
    for reader, shard, place in places:
        with suppress(InputError):
            height, width = reader.read(shard, place, False).image.shape[:2]
            return min(NUM_IMAGES, max(LEAST_IMAGES, NUM_PIXELS // (height * width)))
    return 0


def ranges_of(statistics: Sequence[Mapping[str, float]], size: Size | None) -> TrainingStatistics | None:
    """The ranges of `image_statistics` of several pictures; None for no picture."""
    if not statistics:
        return None
    ranges = {}
    for name in LEAST_WIDTHS:
        low, high = np.percentile([each[name] for each in statistics], [LOW_PERCENT, HIGH_PERCENT])
        ranges[name] = (float(low), float(high))
    return TrainingStatistics(len(statistics), size, ranges)


def image_statistics(pixels: np.ndarray, size: Size | None = None) -> dict[str, float] | None:
    """The statistics of a picture, by the names of `LEAST_WIDTHS`.

    mean, standard deviation (grey levels of 255), skewness: of the stretched picture.
    fineness, sharpness, coarseness: log2 of the ratio of the energies in two neighbouring octaves of sizes, from the
    finest pair to the coarsest, less what white noise adds to them. Defocus lowers `sharpness` at any confluence,
    because cells bring energy to both its octaves. It is the slope of the power spectrum at one place; over all sizes
    that is PowerLogLogSlope of Bray et al. 2012 (doi 10.1177/1087057111420292).
    structure: log2 of the coarsest octave's share of the variance.

    Args:
        pixels: uint8 or uint16, (H, W) or (H, W, 3), also memory-mapped.
        size: the picture is scaled to it first; None: as it is.

    Returns None for a side below 64 pixels and for a picture without contrast.
    """
    if size is not None:
        # Of a picture that is much larger than that, every second, third, … pixel is enough.
        steps = [
            max(1, side // (2 * wanted)) for side, wanted in zip(pixels.shape, (size.height, size.width), strict=False)
        ]
        pixels = resize_image(every(pixels, *steps), size)
    if min(pixels.shape[:2]) < MIN_SIDE_PX:
        return None
    values = _tiles(pixels).astype(np.float32)
    mean, deviation = float(values.mean()), float(values.std())
    energies = np.mean([_energies(tile) for tile in values], axis=0)
    values -= mean
    if deviation < 1e-3 or energies.min() <= 0:
        return None
    noise = energies[0] * WHITE_NOISE
    # A picture of noise alone keeps a little of its energy: the logarithm must be finite.
    clean = np.maximum(energies - noise, energies / 1000)
    fineness = math.log2(energies[0] / energies[1])
    sharpness, coarseness = (math.log2(clean[octave] / clean[octave + 1]) for octave in (1, 2))
    return {
        "mean": mean,
        "standard deviation": deviation,
        "skewness": float((values * values * values).mean()) / deviation**3,
        "fineness": fineness,
        "sharpness": sharpness,
        "coarseness": coarseness,
        "structure": math.log2(energies[3] / deviation**2),
    }


def every(pixels: np.ndarray, row_step: int, column_step: int) -> np.ndarray:
    """`pixels[::row_step, ::column_step]`, in memory for these pixels and a band of rows only."""
    band = row_step * max(1, BAND_ROWS // row_step)
    parts = [
        np.array(np.asarray(pixels[top : top + band])[::row_step, ::column_step])
        for top in range(0, pixels.shape[0], band)
    ]
    return np.concatenate(parts)


def grey(pixels: np.ndarray) -> np.ndarray:
    """(H, W) uint8 with its contrast stretched. pixels: uint8 or uint16, (H, W) or (H, W, 3)."""
    plane = np.ascontiguousarray(pixels)
    return normalize_intensity(plane if plane.ndim == 2 else cv2.cvtColor(plane, cv2.COLOR_RGB2GRAY), "percentile")


def _tiles(pixels: np.ndarray) -> np.ndarray:
    """The picture as one tile, (1, H, W); of a large one, 9 tiles, (9, 512, 512) or less wide. uint8, stretched
    together."""
    height, width = pixels.shape[:2]
    if height * width <= (TILES_A_SIDE * TILE_PX) ** 2:
        return grey(np.asarray(pixels))[None]
    tops, lefts = (
        [round(place) for place in np.linspace(0, max(0, side - TILE_PX), TILES_A_SIDE)] for side in (height, width)
    )
    parts = [np.asarray(pixels[top : top + TILE_PX, left : left + TILE_PX]) for top in tops for left in lefts]
    return grey(np.concatenate(parts)).reshape(len(parts), *parts[0].shape[:2])


def _energies(tile: np.ndarray) -> np.ndarray:
    """Variance in each octave, (4,): of what lies between a Gaussian blur and the next wider one.

    tile: float32, (H, W).
    """
    levels = [tile, *(cv2.GaussianBlur(tile, (0, 0), sigma) for sigma in SIGMAS_PX)]
    return np.array([float((fine - wide).var()) for fine, wide in pairwise(levels)])


def _evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, evenly spread."""
    number = min(count, wanted)
    return [index * count // number for index in range(number)]
