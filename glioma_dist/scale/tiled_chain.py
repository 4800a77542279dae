"""Several functions with norms between them, in tiles of rows, of which only the inputs are kept.

`checkpoint_in_tiles` keeps the map before each norm, because its statistics are those of all rows. Here no such map is
ever held as a whole: its statistics are taken from tiles, and then all is computed again with them, tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import compress, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.tile_gradients import Gradient, Totals
from glioma_dist.scale.tile_rows import Tile, cut, halos_of, put_rows, slices_of
from glioma_dist.scale.tile_size import TileSize, dense
from glioma_dist.scale.tiled_statistics import Statistics
from glioma_dist.scale.tiles import autocast_state, size_of_tiles

HALOS_PER_TILE = 4
"""Rows of the smallest tile, in halos: those of neighbours, which are computed twice, are then at most a third."""
NUM_SETTINGS = 2
"""Arguments of `_ChainInTiles` before the tensors."""


class Chain(NamedTuple):
    """What is computed: `functions[0](*maps)`, and each further function of what the one before returned, and of its
    mean and variance."""

    functions: Sequence[Callable[..., Tensor]]
    statistics: Sequence[Statistics]
    """Of what each function but the last returns."""
    ratio: int
    """Rows of all that the functions return, and of the further maps, for each row of the first map."""
    halo: int
    """Rows of the first map on each side on which a row of the result depends."""
    group: SpatialGroup
    """The processes that have the other rows of the image."""

    def run(
        self,
        maps: Sequence[Tensor],
        found: Sequence[Sequence[Tensor]],
        tile: Tile,
        first_with_graph: int | None = None,
    ) -> list[Tensor]:
        """The tile's own rows of what the first function returns, and of one more for each pair in `found`.
        first_with_graph: number of the function from which on autograd watches; None: it watches none."""
        own, given = [], maps
        for number in range(len(found) + 1):
            statistics = found[number - 1] if number else ()
            with torch.set_grad_enabled(first_with_graph is not None and number >= first_with_graph):
                features = self.functions[number](*given, *statistics)
                own.append(tile.crop(features, self.ratio))
            given = (features,)
        return own


def checkpoint_chain_in_tiles(
    chain: Chain,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    inner_channels: int,
    size: TileSize | None = None,
) -> Tensor:
    """Compute `chain` one tile of rows at a time.

    inputs: a feature map (B, C, H, W), and further maps with `chain.ratio` rows for each of its rows.
    parameters: all weights that the functions use besides their arguments, frozen ones, too.
    inner_channels: channels of the widest map inside the functions; it decides the height of the tiles.
    size: of tiles; by default the size for the device of the maps.

    Returns (B, C', ratio * H, ratio * W). Only `inputs` are kept for the backward pass. The gradients are those of the
    functions up to the order of sums. With n functions the first is computed 2 n times.
    """
    size = size_of_tiles(size, inputs[0].device)
    tiles = cut(
        inputs[0],
        chain.ratio,
        inner_channels,
        chain.group,
        size.widened,
        chain.halo,
        least_rows=HALOS_PER_TILE * chain.halo,
    )
    return _ChainInTiles.apply(_Cut(chain, tiles, size), len(inputs), *inputs, *parameters)


class _Cut(NamedTuple):
    chain: Chain
    tiles: list[Tile]
    size: TileSize

    def slices(
        self, inputs: Sequence[Tensor], halos: list[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tile, list[Tensor]]]:
        """For each tile its rows of the inputs, with those of its neighbours."""
        for tile in self.size.computed(self.tiles):
            yield tile, slices_of(inputs, halos, tile, self.chain.ratio, self.size)

    def results(
        self, inputs: Sequence[Tensor], halos: list[tuple[Tensor, Tensor]], found: Sequence[Sequence[Tensor]]
    ) -> Iterator[tuple[Tile, Tensor]]:
        """For each tile its own rows of the last map that can be computed with the statistics in `found`."""
        for tile, maps in self.slices(inputs, halos):
            yield tile, self.chain.run(maps, found, tile)[-1]


class _ChainInTiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: _Cut, num_maps: int, *tensors: Tensor) -> Tensor:
        chain, inputs = how.chain, tensors[:num_maps]
        ctx.how, ctx.num_maps, ctx.autocast = how, num_maps, autocast_state(inputs[0].device.type)
        halos = halos_of(inputs, chain.ratio, chain.group, how.tiles)
        found: list[tuple[Tensor, Tensor]] = []
        for statistics in chain.statistics:
            parts = (_widened(part) for _, part in how.results(inputs, halos, found))
            found.append(statistics.of_parts(parts))
        output = None
        for tile, part in how.results(inputs, halos, found):
            output = put_rows(output, part, tile, inputs[0].shape[2], chain.ratio)
            del part  # before the next tile is computed
        ctx.save_for_backward(
            *tensors, *(each for pair in found for each in pair), *(h for pair in halos for h in pair)
        )
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        how, saved = ctx.how, iter(ctx.saved_tensors)
        chain, inputs = how.chain, list(islice(saved, ctx.num_maps))
        is_trained = ctx.needs_input_grad[NUM_SETTINGS + ctx.num_maps :]
        parameters = list(compress(islice(saved, len(is_trained)), is_trained))
        found = [(next(saved), next(saved)) for _ in chain.statistics]
        halos = list(zip(saved, saved, strict=True))
        sums: list[list[Tensor] | None] = [None] * len(found)
        """Of the gradients of each map's mean and variance."""
        for number in reversed(range(len(found))):
            if not chain.statistics[number].fixed:
                totals = Totals(2)
                with torch.autocast(**ctx.autocast):
                    for tile, maps in how.slices(inputs, halos):
                        loose = [each.detach().requires_grad_() for each in found[number]]
                        used = [*found[:number], loose, *found[number + 1 :]]
                        own = chain.run(maps, used, tile, first_with_graph=number + 1)
                        totals.add(_gradients(how, own, found, sums, gradient, tile, loose))
                        del own, used, loose, maps
                sums[number] = chain.statistics[number].sums_of([each for each in totals.values if each is not None])
        needed = ctx.needs_input_grad[NUM_SETTINGS : NUM_SETTINGS + ctx.num_maps]
        map_gradients = [
            Gradient(each, halo, how.size) if is_needed else None
            for each, halo, is_needed in zip(inputs, halos, needed, strict=True)
        ]
        totals = Totals(len(parameters))
        with torch.autocast(**ctx.autocast):
            for tile, maps in how.slices(inputs, halos):
                maps = [each.detach().requires_grad_(is_needed) for each, is_needed in zip(maps, needed, strict=True)]
                own = chain.run(maps, found, tile, first_with_graph=0)
                sources = [each for each in maps if each.requires_grad]
                gradients = _gradients(how, own, found, sums, gradient, tile, [*sources, *parameters])
                inner = iter(gradients[: len(sources)])
                for place, total in enumerate(map_gradients):
                    if total is not None:
                        factor = chain.ratio if place else 1
                        total.add(next(inner), tile, factor)
                totals.add(gradients[len(sources) :])
                del own, maps, sources, gradients, inner
        whole = [None if each is None else each.exchanged(chain.group) for each in map_gradients]
        of_weights = iter(totals.values)
        return *[None] * NUM_SETTINGS, *whole, *(next(of_weights) if each else None for each in is_trained)


def _gradients(
    how: _Cut,
    own: list[Tensor],
    found: Sequence[Sequence[Tensor]],
    sums: Sequence[list[Tensor] | None],
    gradient: Tensor,
    tile: Tile,
    sources: list[Tensor],
) -> Sequence[Tensor | None]:
    """Gradients of `sources` that a tile gives: from its rows of the result, and from those of each map whose `sums`
    are known, by way of its mean and variance."""
    outputs, of_outputs = [own[-1]], [dense(gradient[:, :, tile.rows(how.chain.ratio)], gradient, how.size)]
    for features, (mean, _), statistics, known in zip(own, found, how.chain.statistics, sums, strict=False):
        if known is not None and features.requires_grad:
            outputs.append(features)
            of_outputs.append(statistics.gradient_of_part(features.detach(), mean, known).to(features.dtype))
    return torch.autograd.grad(outputs, sources, of_outputs, allow_unused=True)


def _widened(part: Tensor) -> Tensor:
    return part.to(torch.promote_types(part.dtype, torch.float32))
