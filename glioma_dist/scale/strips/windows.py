"""Pooling, padding and interpolation of maps that are cut by rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from glioma_dist.scale.strips.convolution import Window, pair
from glioma_dist.scale.strips.exchange import fetch, own_rows, total, whole, windowed
from glioma_dist.scale.strips.rows import Rows, mark, marked, rows_of, shape_of


def is_image(features: Tensor) -> bool:
    """Whether a map (B, C, H, W) is cut by its rows."""
    rows = rows_of(features)
    return rows is not None and rows.dim == 2 and features.ndim == 4


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """As torch.nn.functional.max_pool2d."""
    settings = (kernel_size, stride or kernel_size, padding, dilation)
    if return_indices or not is_image(input):  # the indices are those of the whole map
        return functional.max_pool2d(whole(input), *settings, ceil_mode=ceil_mode, return_indices=return_indices)
    kernel, stride, padding, dilation = map(pair, settings)
    window = Window((kernel[0] - 1) * dilation[0] + 1, stride[0], padding[0], ceil_mode)
    rows = window.output(marked(input))
    if rows.has_empty:
        return functional.max_pool2d(whole(input), *settings, ceil_mode=ceil_mode)
    joined = fetch(input, windowed(input, window.inputs(rows), -math.inf))
    across = _across(input.shape[3], (kernel[1] - 1) * dilation[1] + 1, stride[1], padding[1], ceil_mode)
    if ceil_mode:
        joined = functional.pad(joined, across, value=-math.inf)
    return mark(torch.max_pool2d(joined, kernel, stride, (0, 0 if ceil_mode else padding[1]), dilation), rows)


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """As torch.nn.functional.avg_pool2d."""
    settings = (kernel_size, stride or kernel_size, padding)
    kernel, stride, padding = map(pair, settings)
    window = Window(kernel[0], stride[0], padding[0], ceil_mode)
    if not is_image(input) or window.output(marked(input)).has_empty:
        given = (ceil_mode, count_include_pad, divisor_override)
        return functional.avg_pool2d(whole(input), *settings, *given)
    rows, width = window.output(marked(input)), input.shape[3]
    joined = fetch(input, windowed(input, window.inputs(rows)))
    across = _across(width, kernel[1], stride[1], padding[1], ceil_mode)
    if any(across):
        joined = functional.pad(joined, across)
    is_plain = not ceil_mode and (count_include_pad or not any(padding))
    if divisor_override or is_plain:
        return mark(functional.avg_pool2d(joined, kernel, stride, divisor_override=divisor_override), rows)
    sums = functional.avg_pool2d(joined, kernel, stride, divisor_override=1)
    extent = (rows.start, rows.stop, marked(input).size), (0, sums.shape[3], width)
    counts = [
        _count(sums, *each, *how, count_include_pad)
        for each, how in zip(extent, zip(kernel, stride, padding, strict=True), strict=True)
    ]
    return mark(sums / (counts[0][:, None] * counts[1]), rows)


def _across(width: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> tuple[int, int]:
    """Columns to add left and right, so that every window is whole."""
    right = padding
    if ceil_mode:
        size = -(-(width + 2 * padding - kernel) // stride) + 1
        size -= (size - 1) * stride >= width + padding
        right = max(right, (size - 1) * stride - padding + kernel - width)
    return padding, right


def _count(
    like: Tensor, first: int, last: int, size: int, kernel: int, stride: int, padding: int, with_padding: bool
) -> Tensor:
    """By how many numbers along one dimension PyTorch divides, for outputs `first` to `last`."""
    starts = torch.arange(first, last, device=like.device) * stride - padding
    low, high = (-padding, size + padding) if with_padding else (0, size)
    return ((starts + kernel).clamp(max=high) - starts.clamp(min=low)).to(like.dtype)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """As torch.nn.functional.adaptive_avg_pool2d: sums over the strips, whole on all processes."""
    if not is_image(input):
        return functional.adaptive_avg_pool2d(whole(input), output_size)
    rows, given = marked(input), [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    height, width = (side if each is None else each for each, side in zip(given, shape_of(input)[2:], strict=True))
    columns = functional.adaptive_avg_pool2d(input, (input.shape[2], width))
    # Output o is the mean of rows floor(o H / n) to ceil((o + 1) H / n): PyTorch's start_index and end_index.
    starts = torch.arange(height, device=input.device)
    first, last = starts * rows.size // height, -((starts + 1) * -rows.size // height)
    number = torch.arange(rows.start, rows.stop, device=input.device)
    inside = (number >= first[:, None]) & (number < last[:, None])
    kind = torch.promote_types(input.dtype, torch.float32)
    shares = inside.to(kind) / (last - first)[:, None]
    with torch.autocast(input.device.type, enabled=False):
        sums = torch.matmul(shares, columns.to(kind))
    return total(sums, rows.group).to(columns.dtype)


def pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """As torch.nn.functional.pad."""
    rows, given = marked(input), list(pad)
    place = 2 * (input.ndim - 1 - rows.dim)
    above, below = given[place : place + 2] if len(given) > place else (0, 0)
    if above == below == 0:
        return mark(functional.pad(input, given, mode, value), rows)
    size = rows.size + above + below
    edges = [0, *(min(size, max(0, edge + above)) for edge in rows.edges[1:-1]), size]
    found = rows.cut_at(edges)
    needs_more = mode != "constant" and max(above, below) >= min(rows.lengths)
    if mode == "circular" or found.has_empty or needs_more or (mode != "constant" and min(above, below) < 0):
        return functional.pad(whole(input), given, mode, value)
    if mode != "constant":  # what is added is made of rows that the strip at the border has
        given[place : place + 2] = [above if rows.start == 0 else 0, below if rows.stop == rows.size else 0]
        return mark(functional.pad(input, given, mode), found)
    wanted = [(first - above, last - above) for first, last in zip(found.edges, found.edges[1:], strict=False)]
    given[place : place + 2] = [0, 0]
    joined = fetch(input, windowed(input, wanted, 0.0 if value is None else value))
    return mark(functional.pad(joined, given, mode, value), found)


HALOS = {"nearest": 0, "nearest-exact": 0, "bilinear": 1, "bicubic": 2}
"""Rows on both sides that an enlarged row is made of."""


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """As torch.nn.functional.interpolate."""
    if not is_image(input):  # of any number of dimensions
        given = (size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
        return functional.interpolate(whole(input), *given)
    settings: dict[str, Any] = {"mode": mode, "align_corners": align_corners, "antialias": antialias}
    shape = shape_of(input)[2:]
    scales = None if scale_factor is None else _both(scale_factor)
    sizes = [math.floor(each * scale) for each, scale in zip(shape, scales, strict=True)] if scales else _both(size)
    if recompute_scale_factor:
        scales = None
    rows = marked(input)
    found = rows.scaled(sizes[0])
    ratio = scales[0] if scales else sizes[0] / shape[0]
    is_multiple = ratio == int(ratio) and not align_corners and not antialias and mode in HALOS
    is_general = mode == "bilinear" and not antialias
    if found.has_empty or not (is_multiple or is_general):
        by_what = {"scale_factor": tuple(scales)} if scales else {"size": tuple(sizes)}
        output = functional.interpolate(whole(input), **by_what, **settings)
        return output if found.has_empty else own_rows(output, found)
    if is_multiple:
        return mark(_enlarge(input, int(ratio), sizes, scales, settings), found)
    return mark(_between(input, found, sizes, scales, bool(align_corners)), found)


def _both(value: Any) -> list:
    return [value, value] if isinstance(value, int | float) else [*value] * (2 // len(value))


def _enlarge(input: Tensor, ratio: int, sizes: list[int], scales: list[float] | None, settings: dict) -> Tensor:
    """To a multiple of the rows: interpolated with a halo, whose own rows are dropped again."""
    rows, halo = marked(input), HALOS[settings["mode"]] if ratio > 1 else 0
    edges = zip(rows.edges, rows.edges[1:], strict=False)
    plan = windowed(input, [(max(0, first - halo), min(rows.size, last + halo)) for first, last in edges])
    joined = fetch(input, plan)
    by_what: dict[str, Any] = {"size": (ratio * joined.shape[2], sizes[1])}
    if scales:
        by_what = {"scale_factor": (float(ratio), scales[1])}
    output = functional.interpolate(joined, **by_what, **settings)
    return output.narrow(2, ratio * (rows.start - plan.own[0]), ratio * (rows.stop - rows.start))


def _between(input: Tensor, found: Rows, sizes: list[int], scales: list[float] | None, align_corners: bool) -> Tensor:
    """Bilinear, to any number of rows: first along the rows, from places in the whole map, then along the columns."""
    rows, height = marked(input), sizes[0]
    if align_corners:
        step, offset = (rows.size - 1) / (height - 1) if height > 1 else 0.0, 0.0
    else:
        step = 1 / scales[0] if scales else rows.size / height
        offset = 0.5 * step - 0.5

    def place(number: int) -> float:
        return min(float(rows.size - 1), max(0.0, number * step + offset))

    wanted = [
        (math.floor(place(first)), min(rows.size, math.floor(place(last - 1)) + 2))
        for first, last in zip(found.edges, found.edges[1:], strict=False)
    ]
    plan = windowed(input, wanted)
    joined = fetch(input, plan)
    places = torch.arange(found.start, found.stop, dtype=torch.float64, device=input.device) * step + offset
    places = places.clamp(0, rows.size - 1)
    low = places.floor().long()
    share = (places - low).to(torch.promote_types(input.dtype, torch.float32)).view(-1, 1)
    upper = joined.index_select(2, low - plan.own[0])
    lower = joined.index_select(2, (low + 1).clamp(max=rows.size - 1) - plan.own[0])
    mixed = (upper * (1 - share) + lower * share).to(joined.dtype)
    by_what: dict[str, Any] = {"scale_factor": (1.0, scales[1])} if scales else {"size": (mixed.shape[2], sizes[1])}
    return functional.interpolate(mixed, **by_what, mode="bilinear", align_corners=align_corners)


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """As torch.nn.functional.pixel_shuffle."""
    if not is_image(input):
        return functional.pixel_shuffle(whole(input), upscale_factor)
    rows = marked(input)
    output = functional.pixel_shuffle(input, upscale_factor)
    return mark(output, rows.cut_at([edge * upscale_factor for edge in rows.edges]))
