"""A convolution's work in tiles of rows, computed again in the backward pass, tile by tile.

What stands between two kept maps (upsampling, joining, normalising, activation) is never held for more than one tile:
at the decoder's full size these are the largest tensors of a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress, islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.tile_gradients import Gradient, GradientInPlace, Totals
from glioma_dist.scale.tile_rows import Tile, cut, halos_of, put_rows, slices_of
from glioma_dist.scale.tile_size import CPU_ELEMENTS, TileSize, default_tile_size, dense
from glioma_dist.scale.tiled_statistics import Statistics, add_gradient, statistics_of

TILE_NUMBERS = CPU_ELEMENTS
"""Largest number of elements of the widest map inside a tile on a CPU, if no size is given."""
NUM_SETTINGS = 9
"""Arguments of `_CheckpointInTiles` before the tensors."""


def checkpoint_in_tiles(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    inner_channels: int,
    ratio: int = 1,
    statistics: Statistics | None = None,
    group: SpatialGroup | None = None,
    size: TileSize | None = None,
    reuses_gradient: bool = False,
    shared: Sequence[Tensor] = (),
    halo: int = 1,
) -> Tensor:
    """Compute `function(*inputs, mean, variance)`, or `function(*inputs, *shared)` without `statistics`, one tile of
    rows at a time.

    function: a row of its output depends only on the same row of the first map and on `halo` rows on each side; at the
        border of the image, `function` itself decides what lies beyond.
    inputs: a feature map (B, C, H, W), and further maps with `ratio` rows for each of its rows.
    parameters: all weights that `function` uses besides its arguments, frozen ones, too.
    inner_channels: channels of the widest map inside `function`; it decides the height of the tiles.
    ratio: rows of the output, and of the further maps, for each row of the first map.
    statistics: computes mean and variance of the first map over all its rows.
    group: the processes that have the other rows of the image, if `function` needs neighbouring rows of them.
    size: of tiles; by default the size for the device of the maps.
    reuses_gradient: whether the output's gradient may be written over, because only this function needs it. Where it
        lies as the first map does, the map's gradient takes its place.
    shared: tensors that each tile gets whole. Their gradients are summed over the tiles, in their own types.
    halo: rows that a tile needs of each neighbour, of the first map.

    Returns (B, C', ratio * H, ratio * W). Only `inputs` are kept for the backward pass. The gradients are those of
    `function` up to the order of sums.
    """
    group = group or SpatialGroup()
    device = inputs[0].device
    size = size_of_tiles(size, device)
    tiles = cut(inputs[0], ratio, inner_channels, group, size.widened if statistics else size.elements, halo)
    settings = (function, tiles, size, ratio, statistics, group, reuses_gradient, len(inputs), len(shared))
    # Autograd keeps watch over frozen parameters, too.
    return _CheckpointInTiles.apply(*settings, *inputs, *shared, *parameters)


def size_of_tiles(size: TileSize | None, device: torch.device) -> TileSize:
    """The size given, or the one for a device."""
    return size or (TileSize(TILE_NUMBERS) if device.type == "cpu" else default_tile_size(device))


class _CheckpointInTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        function: Callable[..., Tensor],
        tiles: list[Tile],
        size: TileSize,
        ratio: int,
        statistics: Statistics | None,
        group: SpatialGroup,
        reuses_gradient: bool,
        num_maps: int,
        num_shared: int,
        *tensors: Tensor,
    ):
        ctx.autocast = autocast_state(tensors[0].device.type)
        inputs, shared = tensors[:num_maps], tensors[num_maps : num_maps + num_shared]
        halos = halos_of(inputs, ratio, group, tiles)
        found = statistics_of(statistics, inputs[0]) if statistics else ()
        output = None
        for tile in size.computed(tiles):
            part = tile.crop(function(*slices_of(inputs, halos, tile, ratio, size), *shared, *found), ratio)
            output = put_rows(output, part, tile, inputs[0].shape[2], ratio)
            del part  # before the next tile is computed
        ctx.function, ctx.tiles, ctx.ratio, ctx.statistics, ctx.num_maps = function, tiles, ratio, statistics, num_maps
        ctx.group, ctx.size, ctx.reuses_gradient, ctx.num_shared = group, size, reuses_gradient, num_shared
        ctx.save_for_backward(*tensors, *found, *(each for halo in halos for each in halo))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        saved, num_maps, num_found = iter(ctx.saved_tensors), ctx.num_maps, 2 if ctx.statistics else 0
        inputs, shared = list(islice(saved, num_maps)), list(islice(saved, ctx.num_shared))
        is_trained = ctx.needs_input_grad[NUM_SETTINGS + num_maps + ctx.num_shared :]
        parameters = list(compress(islice(saved, len(is_trained)), is_trained))
        found = [*shared, *islice(saved, num_found)]
        halos = list(zip(saved, saved, strict=True))
        map_gradients = [
            Gradient(each, halo, ctx.size) if needed else None
            for each, halo, needed in zip(inputs, halos, ctx.needs_input_grad[NUM_SETTINGS:], strict=False)
        ]
        first = inputs[0]
        if ctx.reuses_gradient and map_gradients[0] is not None and _lie_alike(gradient, first):
            map_gradients[0] = GradientInPlace(gradient, halos[0])
        totals = Totals(len(found) + len(parameters))
        # One context around all tiles: autocast converts the weights once, and drops them at its end.
        with torch.autocast(**ctx.autocast):
            for tile in ctx.size.computed(ctx.tiles):
                slices = [
                    part.detach().requires_grad_(total is not None)
                    for part, total in zip(
                        slices_of(inputs, halos, tile, ctx.ratio, ctx.size), map_gradients, strict=True
                    )
                ]
                loose = [each.detach().requires_grad_() for each in found]
                with torch.enable_grad():
                    output = tile.crop(ctx.function(*slices, *loose), ctx.ratio)
                sources = [part for part in slices if part.requires_grad]
                of_output = dense(gradient[:, :, tile.rows(ctx.ratio)], gradient, ctx.size)
                gradients = torch.autograd.grad(output, [*sources, *loose, *parameters], of_output, allow_unused=True)
                inner = iter(gradients[: len(sources)])
                for number, total in enumerate(map_gradients):
                    if total is not None:
                        factor = ctx.ratio if number else 1
                        total.add(next(inner), tile, factor)
                totals.add(gradients[len(sources) :])
                del slices, loose, output, sources, of_output, gradients, inner, total  # before the next tile
        if ctx.statistics and map_gradients[0] is not None:
            add_gradient(ctx.statistics, map_gradients[0].inside, inputs[0], found[0], totals.values[:num_found])
        whole = [None if each is None else each.exchanged(ctx.group) for each in map_gradients]
        of_weights = iter(totals.values[len(found) :])
        return (
            *[None] * NUM_SETTINGS,
            *whole,
            *totals.values[: len(shared)],
            *(next(of_weights) if each else None for each in is_trained),
        )


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def autocast_state(device_type: str) -> dict[str, Any]:
    """Arguments of `torch.autocast` for its current state, with its cache of converted weights."""
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
        "cache_enabled": True,
    }
