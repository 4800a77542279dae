"""Functions that move, split or join dimensions of a map that is cut by rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from glioma_dist.scale.strips.exchange import aligned, recut, whole
from glioma_dist.scale.strips.rows import Rows, map_tensors, mark, marked, rows_of, shape_of, tensors_in

PROBES = (1009, 1013)
"""Numbers of rows that no dimension has otherwise: where they come out again, the rows are."""


def reshape(input: Tensor, *shape: Any, call: str = "reshape") -> Tensor:
    """As Tensor.reshape, Tensor.view: rows become one dimension, or the first of several, or join those that follow."""
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        raise NotImplementedError
    sizes = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
    rows, before = marked(input), shape_of(input)
    if -1 in sizes:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = math.prod(before) // max(1, known)
    place = _place(before, rows.dim, sizes)
    if place is None:
        return whole(input).reshape(sizes)
    per_row, per_new = math.prod(before[rows.dim + 1 :]), math.prod(sizes[place + 1 :])
    if any(edge * per_row % per_new for edge in rows.edges):  # several rows make one: strips of such groups of rows
        unit = per_new // math.gcd(per_new, per_row)
        edges = [round(edge / unit) * unit for edge in rows.edges[:-1]]
        coarse = rows.cut_at([*edges, rows.size])
        if coarse.has_empty or rows.size % unit:
            return whole(input).reshape(sizes)
        input, rows = recut(input, coarse), coarse
    found = rows.cut_at([edge * per_row // per_new for edge in rows.edges]).at(place)
    sizes[place] = found.stop - found.start
    return mark(getattr(input, call)(sizes), found)


def _place(before: Sequence[int], dim: int, after: Sequence[int]) -> int | None:
    """Which new dimension begins with the rows; None where they are within one."""
    wanted, product = math.prod(before[:dim]), 1
    for place, size in enumerate(after):
        if product == wanted and size != 1:
            return place
        product *= size
    return None


def view(input: Tensor, *shape: Any) -> Tensor:
    """As Tensor.view, but a copy of its own where strips must be cut elsewhere."""
    return reshape(input, *shape, call="view" if input.is_contiguous() else "reshape")


def view_as(input: Tensor, other: Tensor) -> Tensor:
    """As Tensor.view_as. Autograd functions call it for what they return as it was given, as FSDP2's do."""
    return mark(input.view_as(input), marked(input)) if input is other else view(input, shape_of(other))


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """As torch.flatten."""
    shape, first, last = shape_of(input), start_dim % input.ndim, end_dim % input.ndim
    return reshape(input, [*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]])


def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """As Tensor.unflatten."""
    shape, dim = shape_of(input), dim % input.ndim
    given = list(sizes)
    if -1 in given:
        given[given.index(-1)] = shape[dim] // -math.prod(given)
    return reshape(input, [*shape[:dim], *given, *shape[dim + 1 :]])


def expand(input: Tensor, *shape: Any) -> Tensor:
    """As Tensor.expand."""
    sizes = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
    rows = marked(input)
    place = rows.dim + len(sizes) - input.ndim
    sizes[place] = -1
    return mark(input.expand(sizes), rows.at(place))


def moved(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """A function after which the rows are still one dimension of each result, as permute, unsqueeze, chunk, stack.

    Where they are is found with shapes alone: what comes out in the number of rows that went in is the rows. Where that
    is not so, as for parts of the rows, the whole map is used.
    """
    first = next(each for each in tensors_in((args, kwargs)) if rows_of(each) is not None)
    rows = marked(first)
    args, kwargs = (map_tensors(lambda each: _as_first(each, rows), values) for values in ((args, kwargs)))
    shapes = [_trial(function, args, kwargs, size) for size in PROBES]
    places = [_places(each, size) for each, size in zip(shapes, PROBES, strict=True)]
    loses_row = 1 in rows.lengths and _num_dims(_trial(function, args, kwargs, 1)) != _num_dims(shapes[0])
    if places[0] is None or places[0] != places[1] or loses_row:
        args, kwargs = (map_tensors(whole, values) for values in ((args, kwargs)))
        return function(*args, **kwargs)
    found = function(*args, **kwargs)
    if isinstance(found, Tensor):
        return mark(found, rows.at(places[0][0]))
    return type(found)(mark(each, rows.at(place)) for each, place in zip(found, places[0], strict=True))


def _as_first(tensor: Tensor, rows: Rows) -> Tensor:
    return tensor if tensor.ndim <= rows.dim else aligned(tensor, rows)


def _trial(function: Callable[..., Any], args: tuple, kwargs: dict, size: int) -> list[torch.Size] | None:
    """The shapes of the results, if there are `size` rows."""

    def stand_in(tensor: Tensor) -> Tensor:
        here = rows_of(tensor)
        shape = list(tensor.shape)
        if here is not None:
            shape[here.dim] = size
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    try:
        found = function(*map_tensors(stand_in, args), **map_tensors(stand_in, kwargs))
    except (RuntimeError, IndexError, TypeError):
        return None  # a number of rows is among its arguments
    return [each.shape for each in ([found] if isinstance(found, Tensor) else found)]


def _places(shapes: list[torch.Size] | None, size: int) -> list[int] | None:
    """In which dimension of each result the rows are."""
    found = [[dim for dim, length in enumerate(each) if length == size] for each in shapes or ()]
    return [each[0] for each in found] if shapes and all(len(each) == 1 for each in found) else None


def _num_dims(shapes: list[torch.Size] | None) -> list[int] | None:
    """Of each result. `squeeze` takes the dimension of a strip's rows away, too, where the strip has one row."""
    return None if shapes is None else [len(each) for each in shapes]


def concatenate(tensors: Sequence[Tensor], dim: int = 0, **named: Any) -> Tensor:
    """As torch.cat. Along the rows, the whole map."""
    dim = named.get("axis", dim)
    first = next(each for each in tensors if rows_of(each) is not None)
    rows = marked(first)
    if dim % first.ndim == rows.dim:
        return torch.cat([whole(each) for each in tensors], dim)
    return mark(torch.cat([aligned(each, rows) for each in tensors], dim), rows)


def getitem(input: Tensor, index: Any) -> Any:
    """As Tensor.__getitem__, of numbers, slices, None and `...`; a slice of rows may have a step."""
    given = list(index) if isinstance(index, tuple) else [index]
    simple = all(each is None or each is Ellipsis or isinstance(each, int | slice) for each in given)
    if rows_of(input) is None or not simple or any(isinstance(each, bool) for each in given):
        return whole(input)[map_tensors(whole, index)]
    used = sum(each is not None and each is not Ellipsis for each in given)
    fill = [slice(None)] * (input.ndim - used)
    gap = next((number for number, each in enumerate(given) if each is Ellipsis), len(given))
    given = [*given[:gap], *fill, *given[gap + 1 :]]
    rows, dim, place = marked(input), -1, 0
    for number, each in enumerate(given):
        dim += each is not None
        if each is not None and dim == rows.dim:
            return _slice_rows(input, rows, given, number, place)
        place += each is None or isinstance(each, slice)
    raise AssertionError("the rows are in no dimension")


def _slice_rows(input: Tensor, rows: Rows, given: list, number: int, place: int) -> Any:
    wanted = given[number]
    if not isinstance(wanted, slice):
        return whole(input)[tuple(given)]
    start, stop, step = wanted.indices(rows.size)
    counts = [min(max(0, math.ceil((edge - start) / step)), len(range(start, stop, step))) for edge in rows.edges]
    found = rows.cut_at(counts)
    if found.has_empty:
        return whole(input)[tuple(given)]
    first = start + found.start * step - rows.start
    given[number] = slice(first, first + (found.stop - found.start - 1) * step + 1, step)
    return mark(input[tuple(given)], found.at(place))


def repeat(input: Tensor, *shape: Any) -> Tensor:
    """As Tensor.repeat."""
    sizes = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
    rows = marked(input)
    place = rows.dim + len(sizes) - input.ndim
    return whole(input).repeat(sizes) if sizes[place] != 1 else mark(input.repeat(sizes), rows.at(place))
