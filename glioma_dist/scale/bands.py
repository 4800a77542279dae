"""A convolution's work in bands of rows, computed again in the backward pass, band by band.

What stands between two kept maps (upsampling, joining, normalising, activation) is never held for more than one band:
at the decoder's full size these are the largest tensors of a training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glioma_dist.scale.statistics import Statistics

BAND_NUMBERS = 2**22
"""Numbers in the largest map inside a band, at most (a row at least): small beside those of an image of several
million pixels, and enough to keep a GPU busy."""


class Band(NamedTuple):
    """Rows of one band, in rows of the first map, and how many halo rows stand above it."""

    start: int
    stop: int
    halo_start: int
    halo_stop: int

    def rows(self, ratio: int) -> slice:
        """Its rows without halo in a map with `ratio` rows for each row of the first."""
        return slice(self.start * ratio, self.stop * ratio)

    def rows_with_halo(self, ratio: int) -> slice:
        return slice(self.halo_start * ratio, self.halo_stop * ratio)

    def crop(self, output: Tensor, ratio: int) -> Tensor:
        """The band's own rows of what was computed with halo."""
        above = (self.start - self.halo_start) * ratio
        return output[:, :, above : above + (self.stop - self.start) * ratio]


def in_bands(
    function: Callable[..., Tensor],
    maps: Sequence[Tensor],
    parameters: Sequence[Tensor],
    inner_channels: int,
    ratio: int = 1,
    statistics: Statistics | None = None,
) -> Tensor:
    """`function(*maps, mean, variance)`, or `function(*maps)` without `statistics`, a band of rows at a time.

    function: a row of its output depends on the same and the neighbouring rows of the first map only, on the border of
        the image as `function` itself treats the border of what it is given.
    maps: (B, C, H, W) and further maps of `ratio` rows for each of the first's.
    parameters: all tensors with gradients that `function` uses beside its arguments.
    inner_channels: of the widest map inside `function`, by which the bands are cut.
    ratio: rows of the output, and of the further maps, for each row of the first map.
    statistics: computes mean and variance of the first map, all rows of it.

    Returns (B, C', ratio * H, ratio * W). For the backward pass only `maps` are kept; gradients are the plain ones up
    to the order of sums.
    """
    trained = [each for each in parameters if each.requires_grad]
    bands = cut(maps[0], ratio, inner_channels)
    return _InBands.apply(function, bands, ratio, statistics, len(maps), *maps, *trained)


class _InBands(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        function: Callable[..., Tensor],
        bands: list[Band],
        ratio: int,
        statistics: Statistics | None,
        num_maps: int,
        *tensors: Tensor,
    ):
        ctx.autocast = _autocast_state(tensors[0].device.type)
        maps = tensors[:num_maps]
        found = statistics.forward(maps[0]) if statistics else ()
        output = None
        for band in bands:
            part = band.crop(function(*_slices(maps, band, ratio), *found), ratio)
            if output is None:
                shape = (*part.shape[:2], maps[0].shape[2] * ratio, part.shape[3])
                output = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=_layout(part))
            output[:, :, band.rows(ratio)] = part
        ctx.function, ctx.bands, ctx.ratio, ctx.statistics, ctx.num_maps = function, bands, ratio, statistics, num_maps
        ctx.save_for_backward(*tensors, *found)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        saved, num_found = ctx.saved_tensors, 2 if ctx.statistics else 0
        tensors, found = saved[: len(saved) - num_found], saved[len(saved) - num_found :]
        maps, parameters = tensors[: ctx.num_maps], tensors[ctx.num_maps :]
        map_gradients = [
            torch.zeros_like(each) if needed else None for each, needed in zip(maps, _needed(ctx), strict=True)
        ]
        totals: list[Tensor | None] = [None] * (num_found + len(parameters))
        for band in ctx.bands:
            slices = [
                part.detach().requires_grad_(total is not None)
                for part, total in zip(_slices(maps, band, ctx.ratio), map_gradients, strict=True)
            ]
            loose = [each.detach().requires_grad_() for each in found]
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                output = band.crop(ctx.function(*slices, *loose), ctx.ratio)
            sources = [part for part in slices if part.requires_grad]
            gradients = torch.autograd.grad(
                output, [*sources, *loose, *parameters], gradient[:, :, band.rows(ctx.ratio)], allow_unused=True
            )
            inner = iter(gradients[: len(sources)])
            for number, total in enumerate(map_gradients):
                if total is not None:
                    total[:, :, band.rows_with_halo(ctx.ratio if number else 1)] += next(inner)
            for number, part in enumerate(gradients[len(sources) :]):
                if part is not None:
                    totals[number] = part if totals[number] is None else totals[number].add_(part)
        if ctx.statistics and map_gradients[0] is not None:
            ctx.statistics.add_gradient(map_gradients[0], maps[0], found, totals[:num_found])
        return None, None, None, None, None, *map_gradients, *totals[num_found:]


def cut(first: Tensor, ratio: int, inner_channels: int) -> list[Band]:
    """Even bands of a map's rows, with one row of halo on each side that is not the image's border."""
    height, width = first.shape[2:]
    numbers = len(first) * inner_channels * height * width * ratio**2
    num_bands = min(height, math.ceil(numbers / BAND_NUMBERS))
    edges = [height * number // num_bands for number in range(num_bands + 1)]
    return [Band(start, stop, max(0, start - 1), min(height, stop + 1)) for start, stop in pairwise(edges)]


def _slices(maps: Sequence[Tensor], band: Band, ratio: int) -> list[Tensor]:
    return [each[:, :, band.rows_with_halo(ratio if number else 1)] for number, each in enumerate(maps)]


def _needed(ctx) -> Sequence[bool]:
    """Which maps need a gradient."""
    return ctx.needs_input_grad[5 : 5 + ctx.num_maps]


def _layout(part: Tensor) -> torch.memory_format:
    return torch.channels_last if part.stride(1) == 1 and part.shape[1] > 1 else torch.contiguous_format


def _autocast_state(device_type: str) -> dict[str, Any]:
    """Arguments of `torch.autocast` as it stands; without its cache of weights, which would outlive a band."""
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
        "cache_enabled": False,
    }
