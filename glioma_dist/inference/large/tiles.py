"""An image computed in tiles that overlap and are blended.

A tile sees less of the image than the network would see of it as a whole, so the result is near to the whole image's,
and not equal: docs/guides/large_images.md says how near.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from glioma_dist.evaluation.maps import by_rows
from glioma_dist.evaluation.network import Network, pixel_maps
from glioma_dist.inference.large.picture import LazyPicture
from glioma_dist.size import Size

UNIT = 32
"""Tiles begin at multiples of it, so that windows of strided layers stand where they stand in the whole image."""
OVERLAP = 512
"""Pixels that neighbouring tiles share at least. On real fields less than 0.1 % of the mask's pixels then differ from
those of the whole (docs/guides/large_images.md)."""


def least_side(overlap: int = OVERLAP) -> int:
    """Return the side in pixels of the smallest useful tile: most of a smaller one would be overlap."""
    return -(-(2 * overlap + 2 * UNIT) // UNIT) * UNIT


def tile_spans(length: int, side: int, overlap: int = OVERLAP) -> list[tuple[int, int]]:
    """Return the first and last pixel (exclusive) of each tile along one axis. Tiles are at most `side` pixels long,
    cover `length` pixels, and overlap by `overlap` pixels or more. side: a multiple of 32, at least
    `least_side(overlap)`."""
    if length <= side:
        return [(0, length)]
    last = -(-(length - side) // UNIT) * UNIT
    gaps = -(-last // (side - overlap - UNIT))
    # So many tiles may be smaller.
    side = -(-(length + gaps * (overlap + UNIT)) // ((gaps + 1) * UNIT)) * UNIT
    last = -(-(length - side) // UNIT) * UNIT
    starts = [number * last // gaps // UNIT * UNIT for number in range(gaps)] + [last]
    return [(start, min(start + side, length)) for start in starts]


def blend_weights(spans: Sequence[tuple[int, int]], overlap: int = OVERLAP) -> list[tuple[int, np.ndarray]]:
    """Return for each tile the place of its first pixel with a weight, and the fp32 weights from there on. The weights
    of all tiles sum to 1 at each pixel.

    Two tiles are blended over half of the overlap, in the middle of what they share: the outermost pixels of a tile,
    which see least of the image, count nothing. At the image's own edges a tile has its full weight.
    """
    width = max(1, overlap // 2)
    ramps = []
    for (_, stop), (start, _) in pairwise(spans):
        ramps.append((start + stop - width) // 2)
    rise = np.sin((np.arange(width) + 0.5) * (np.pi / 2 / width)).astype(np.float32) ** 2
    found = []
    for number, (start, stop) in enumerate(spans):
        first = start if number == 0 else ramps[number - 1]
        end = stop if number == len(spans) - 1 else ramps[number] + width
        weights = np.ones(end - first, np.float32)
        if number > 0:
            weights[:width] = rise
        if number < len(spans) - 1:
            weights[-width:] = 1 - rise
        found.append((first, weights))
    return found


def compute_in_tiles(
    network: Network,
    picture: LazyPicture,
    side: int,
    write: Callable[[int, np.ndarray], None],
    overlap: int = OVERLAP,
    tell: Callable[[int, int], None] | None = None,
) -> int:
    """Compute the maps of `picture` in tiles, and pass them from top to bottom to `write(first row, float32 (rows, W)
    or, of several channels, (rows, C, W))`.

    side: of a tile, in pixels, a multiple of 32. tell: is told after each tile how many of how many are done. Returns
    the number of tiles.
    """
    height, width = picture.shape[:2]
    rows, columns = tile_spans(height, side, overlap), tile_spans(width, side, overlap)
    across = blend_weights(columns, overlap)
    channels = (network.outputs.num_outputs,) * (network.outputs.num_outputs > 1)
    kept = np.zeros((0, *channels, width), np.float32)  # the rows of the ramp to the next tiles
    done = 0
    for (top, bottom), (first, down) in zip(rows, blend_weights(rows, overlap), strict=True):
        pixels = picture.rows(top, bottom)
        band = np.zeros((len(down), *channels, width), np.float32)
        for (left, right), (begin, weights) in zip(columns, across, strict=True):
            tile = np.ascontiguousarray(pixels[:, left:right])
            found = by_rows(pixel_maps(network, tile, None, Size(right - left, bottom - top))[0])
            part = found[first - top : first - top + len(down), ..., begin - left : begin - left + len(weights)]
            band[..., begin : begin + len(weights)] += part * weights
            done += 1
            if tell is not None:
                tell(done, len(rows) * len(columns))
        band *= down.reshape(-1, *(1 for _ in band.shape[1:]))
        band[: len(kept)] += kept
        num_kept = 0 if bottom == height else max(1, overlap // 2)
        write(first, band[: len(band) - num_kept])
        kept = band[len(band) - num_kept :].copy()
    return done
