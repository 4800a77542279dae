"""Which tiles of a map are computed where a step is only counted: the largest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from glioma_dist.scale.tile_rows import Tile
from glioma_dist.scale.tile_size import TileSize


@dataclass(frozen=True)
class CountedTiles(TileSize):
    """In the place of all tiles of a map the one with the most rows is computed, twice. It decides the memory;
    gradients are summed from the second tile on. The work of all is close to as many of it: tiles differ by a few
    rows."""

    begin: Callable[[int], None] = field(default=lambda number: None, compare=False)
    """Is told for how many tiles the next one stands, and 1 after the last tile of a map."""

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
