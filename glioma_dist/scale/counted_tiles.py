"""Which tiles of a map are computed where a step is only counted: one of those that do the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from glioma_dist.scale.tile_rows import Tile
from glioma_dist.scale.tile_size import TileSize


@dataclass(frozen=True)
class CountedTiles(TileSize):
    """Of tiles of one height and halo only the first is computed: they all take the same memory and work."""

    begin: Callable[[int], None] = field(default=lambda number: None, compare=False)
    """Is told for how many tiles the next one stands, and 1 after the last tile of a map."""

    def computed(self, tiles: Sequence[Tile]) -> Iterator[Tile]:
        """The first, the last, and of those between one of each kind."""
        kinds = [_kind(tile, tile is tiles[0], tile is tiles[-1]) for tile in tiles]
        numbers = Counter(kinds)
        try:
            for kind, tile in zip(kinds, tiles, strict=True):
                if number := numbers.pop(kind, 0):
                    self.begin(number)
                    yield tile
        finally:
            self.begin(1)


class LargestTiles(CountedTiles):
    """In the place of all tiles the one with the most rows, twice: it decides the memory, and gradients are summed from
    the second tile on. The work is close: tiles differ by a few rows."""

    def computed(self, tiles: Sequence[Tile]) -> Iterator[Tile]:
        """One tile, twice where there are several."""
        largest = max(tiles, key=lambda tile: tile.halo_stop - tile.halo_start)
        try:
            for number in (1, len(tiles) - 1):
                if number:
                    self.begin(number)
                    yield largest
        finally:
            self.begin(1)


def _kind(tile: Tile, is_first: bool, is_last: bool) -> tuple[int | bool, ...]:
    return is_first, is_last, tile.stop - tile.start, tile.start - tile.halo_start, tile.halo_stop - tile.stop
