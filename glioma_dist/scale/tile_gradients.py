"""Gradients that are summed up tile by tile: of maps and their halos, of weights and of statistics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from glioma_dist.scale.spatial_group import SpatialGroup, add_to_borders
from glioma_dist.scale.tile_rows import Tile
from glioma_dist.scale.tile_size import TileSize
from glioma_dist.scale.tiled_statistics import chunks


class Gradient:
    """Gradient of a map and of its halo, as it is summed up tile by tile."""

    def __init__(self, features: Tensor, halo: tuple[Tensor, Tensor], size: TileSize) -> None:
        if size.too_large(features.numel()):
            self.inside = torch.empty_like(features)
            for part in chunks(self.inside, size):
                part.zero_()
        else:
            self.inside = torch.zeros_like(features)
        self.halo = [torch.zeros_like(each) for each in halo]

    def add(self, part: Tensor, tile: Tile, ratio: int) -> None:
        """Add to the rows of a tile and its halo, in a map of `ratio` rows for each row of the tile."""
        start, first = tile.halo_start * ratio, -self.halo[0].shape[2]
        for total in (self.halo[0], self.inside, self.halo[1]):
            from_row, to_row = max(start, first), min(start + part.shape[2], first + total.shape[2])
            if from_row < to_row:
                total[:, :, from_row - first : to_row - first] += part[:, :, from_row - start : to_row - start]
            first += total.shape[2]

    def exchanged(self, group: SpatialGroup) -> Tensor:
        """The map's gradient with what the other tiles add to it."""
        if group.size > 1:
            add_to_borders(self.inside, *group.exchange(*self.halo)())
        return self.inside


class GradientInPlace(Gradient):
    """A map's gradient in the place of the output's, whose rows are overwritten as they are no longer needed."""

    def __init__(self, gradient: Tensor, halo: tuple[Tensor, Tensor]) -> None:
        self.inside, self.halo = gradient, [torch.zeros_like(each) for each in halo]
        self._carried = gradient[:, :, :0]
        """What the tile before gives to the first rows of the next one."""

    def add(self, part: Tensor, tile: Tile, ratio: int) -> None:
        """As Gradient's. Tiles come in their order: the gradient of a tile's own rows is read no more."""
        begin, start, stop = (ratio * row for row in (tile.halo_start, tile.start, tile.stop))
        edges = (0, start, stop, self.inside.shape[2])
        above, done, own, below, beyond = part.split(_lengths(begin, part.shape[2], edges), 2)
        if above.shape[2]:
            self.halo[0] += above
        if beyond.shape[2]:
            self.halo[1] += beyond
        self.inside[:, :, start - done.shape[2] : start] += done
        self.inside[:, :, start:stop] = own
        self.inside[:, :, start : start + self._carried.shape[2]] += self._carried
        self._carried = below.clone()


def _lengths(start: int, num_rows: int, edges: Sequence[int]) -> list[int]:
    """How many of the rows from `start` on lie before, between and after `edges`."""
    end = start + num_rows
    cuts = [start, *(min(max(each, start), end) for each in edges), end]
    return [stop - begin for begin, stop in pairwise(cuts)]


class Totals:
    """Gradients of weights and statistics, summed over the tiles."""

    def __init__(self, number: int) -> None:
        self.values: list[Tensor | None] = [None] * number

    def add(self, parts: Sequence[Tensor | None]) -> None:
        known, new = [], []
        for number, part in enumerate(parts):
            if part is None:
                continue
            total = self.values[number]
            if total is None:
                self.values[number] = part
            else:
                known.append(total)
                new.append(part)
        if known:
            torch._foreach_add_(known, new)  # one launch for all
