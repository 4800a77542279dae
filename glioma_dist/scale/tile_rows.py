"""Cuts feature maps into tiles of rows, with the rows of neighbours that a convolution reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from glioma_dist.scale.spatial_group import SpatialGroup, rows_between
from glioma_dist.scale.tile_size import TileSize, dense, layout


class Tile(NamedTuple):
    """Rows of one tile, in rows of the first map, and how many halo rows stand above it."""

    start: int
    stop: int
    halo_start: int
    halo_stop: int

    def rows(self, ratio: int) -> slice:
        """Its rows without halo in a map with `ratio` rows for each row of the first."""
        return slice(self.start * ratio, self.stop * ratio)

    def crop(self, output: Tensor, ratio: int) -> Tensor:
        """The tile's own rows of what was computed with halo."""
        above = (self.start - self.halo_start) * ratio
        return output[:, :, above : above + (self.stop - self.start) * ratio]


def cut(
    first: Tensor,
    ratio: int,
    inner_channels: int,
    group: SpatialGroup,
    elements: int,
    halo: int = 1,
    least_rows: int = 1,
) -> list[Tile]:
    """Divide the rows of a map into even tiles, with a halo on each side that is not the image's border. Rows before
    the first and after the last belong to other processes. elements: limit for the widest map inside a tile, which has
    at least `least_rows` rows all the same."""
    height, width = first.shape[2:]
    numbers = len(first) * inner_channels * height * width * ratio**2
    num_tiles = max(1, min(height // least_rows, math.ceil(numbers / elements)))
    edges = [height * number // num_tiles for number in range(num_tiles + 1)]
    first_row, last_row = -halo * group.has_previous, height + halo * group.has_next
    return [
        Tile(start, stop, max(first_row, start - halo), min(last_row, stop + halo)) for start, stop in pairwise(edges)
    ]


def put_rows(output: Tensor | None, part: Tensor, tile: Tile, height: int, ratio: int) -> Tensor:
    """Put a tile's own rows into the map of `height` * `ratio` rows, which the first tile makes."""
    if output is None:
        shape = (*part.shape[:2], height * ratio, part.shape[3])
        output = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=layout(part))
    output[:, :, tile.rows(ratio)] = part
    return output


def halos_of(
    inputs: Sequence[Tensor], ratio: int, group: SpatialGroup, tiles: Sequence[Tile]
) -> list[tuple[Tensor, Tensor]]:
    """The neighbouring processes' rows above and below each map; further maps have `ratio` rows for each of the
    first."""
    num_rows = max(0, -tiles[0].halo_start, tiles[-1].halo_stop - tiles[-1].stop)
    return [_halo(each, num_rows * (ratio if number else 1), group) for number, each in enumerate(inputs)]


def _halo(features: Tensor, num_rows: int, group: SpatialGroup) -> tuple[Tensor, Tensor]:
    if group.size == 1 or num_rows == 0:
        return features[:, :, :0], features[:, :, :0]
    return group.exchange(features[:, :, :num_rows], features[:, :, -num_rows:])()


def slices_of(
    inputs: Sequence[Tensor], halos: Sequence[tuple[Tensor, Tensor]], tile: Tile, ratio: int, size: TileSize
) -> list[Tensor]:
    each_ratio = [ratio if number else 1 for number in range(len(inputs))]
    return [
        dense(rows_between(halo[0], each, halo[1], tile.halo_start * factor, tile.halo_stop * factor), each, size)
        for each, halo, factor in zip(inputs, halos, each_ratio, strict=True)
    ]
