"""Rows from other processes, with their gradients.

All communication of a split module goes through four functions: `fetch` (any rows, as halos), `whole` (all rows),
`total` (a sum) and `shared` (one gradient for what all processes have).

Gradients are parts: what a process computes for a tensor that all processes have is one addend of its gradient. So is
each weight's gradient, and the sum over the processes is that of the whole image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glioma_dist.model.layout import layout_of
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.strips.rows import Rows, mark, marked, rows_of, shape_of


@dataclass(frozen=True)
class Plan:
    """How each process gets rows `wanted[p]` of a map; rows outside it are `value`. The same on all processes."""

    rows: Rows
    wanted: tuple[tuple[int, int], ...]
    value: float = 0.0

    @property
    def own(self) -> tuple[int, int]:
        return self.wanted[self.rows.group.rank]

    @property
    def above(self) -> int:
        """Rows that each process sends to the next one."""
        starts = zip(self.rows.edges[1:], self.wanted[1:], strict=False)
        return max(0, *(edge - max(0, start) for edge, (start, _) in starts))

    @property
    def below(self) -> int:
        """Rows that each process sends to the one before."""
        stops = zip(self.rows.edges[1:-1], self.wanted[:-1], strict=True)
        return max(0, *(min(self.rows.size, stop) - edge for edge, (_, stop) in stops))

    @property
    def is_local(self) -> bool:
        """Whether nothing is sent."""
        return self.above == self.below == 0 and self._overlaps

    @property
    def is_own(self) -> bool:
        """Whether each process wants its own strip, and nothing else."""
        return self.wanted == tuple(pairwise(self.rows.edges))

    @property
    def is_near(self) -> bool:
        """Whether direct neighbours have all that is wanted; else all processes get the whole map for a moment."""
        lengths = self.rows.lengths
        return self.above <= min(lengths[:-1]) and self.below <= min(lengths[1:]) and self._overlaps

    @property
    def _overlaps(self) -> bool:
        """Whether every process keeps a row of its own: else what it wants may lie beyond its neighbours."""
        pairs = zip(self.rows.edges, self.rows.edges[1:], self.wanted, strict=False)
        return all(start < last and stop > first for first, last, (start, stop) in pairs)


def windowed(tensor: Tensor, wanted: list[tuple[int, int]], value: float = 0.0) -> Plan:
    return Plan(marked(tensor), tuple(wanted), value)


def fetch(features: Tensor, plan: Plan) -> Tensor:
    """The rows of a marked map that this process wants. As all functions here with its gradient."""
    return features if plan.is_own else _Fetch.apply(features, plan)


def recut(features: Tensor, rows: Rows) -> Tensor:
    """A marked map with another cut of the same dimension."""
    if marked(features).edges == rows.edges:
        return features
    return mark(fetch(features, windowed(features, list(pairwise(rows.edges)))), rows)


def whole(features: Tensor) -> Tensor:
    """All rows of a marked map on all processes; what is not marked as it is."""
    rows = rows_of(features)
    return features if rows is None else _Gather.apply(features, rows)


def total(values: Tensor, group: SpatialGroup) -> Tensor:
    """Sum over the processes of what each took from its strip."""
    return _Sum.apply(values, group)


def shared(values: Tensor, group: SpatialGroup) -> Tensor:
    """`values`, which all processes have, for a loss that all compute: each passes on its share of the gradient."""
    return _Share.apply(values, group)


def own_rows(values: Tensor, rows: Rows) -> Tensor:
    """This process's rows of a whole tensor; marked."""
    return mark(values.narrow(rows.dim, rows.start, rows.stop - rows.start), rows)


def join(features: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Rows `plan.own` of the map, and what came from above and below; without gradient."""
    rows, dim = plan.rows, plan.rows.dim
    nothing = features.narrow(dim, 0, 0)
    if plan.is_local:
        return assemble(nothing, features, nothing, plan), nothing, nothing
    if not plan.is_near:
        everything = gather(features, rows)
        return _take(everything, dim, 0, *plan.own, plan.value), nothing, nothing
    above, below = plan.above, plan.below
    length = features.shape[dim]
    received = rows.group.exchange(
        features.narrow(dim, 0, below) if rows.start else _filled(features, dim, below),
        features.narrow(dim, length - above, above) if rows.stop < rows.size else _filled(features, dim, above),
    )()
    # By rows, not by neighbours: a process that is only counted (`ImaginarySpatialGroup`) has more of these.
    top = _laid_out(received[0], features) if rows.start else nothing
    bottom = _laid_out(received[1], features) if rows.stop < rows.size else nothing
    return assemble(top, features, bottom, plan), top, bottom


def assemble(above: Tensor, features: Tensor, below: Tensor, plan: Plan) -> Tensor:
    """The wanted rows of a strip and of what `join` got from above and below it; contiguous in its layout."""
    dim = plan.rows.dim
    start, stop = plan.own
    parts, first = [], plan.rows.start - above.shape[dim]
    parts.append(_filled(features, dim, max(0, -start), plan.value))
    for part in (above, features, below):
        low, high = max(start, first) - first, min(stop, first + part.shape[dim]) - first
        if low < high:
            parts.append(part.narrow(dim, low, high - low))
        first += part.shape[dim]
    parts.append(_filled(features, dim, max(0, stop - plan.rows.size), plan.value))
    parts = [each for each in parts if each.shape[dim]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def give_back(gradient: Tensor, plan: Plan) -> Tensor:
    """The gradient of this process's strip, from the gradients of the rows that all processes wanted."""
    rows, dim = plan.rows, plan.rows.dim
    group = rows.group
    start, stop = max(0, plan.own[0]), min(plan.own[1], rows.size)
    inner = gradient.narrow(dim, start - plan.own[0], max(0, stop - start))
    if not plan.is_near and not plan.is_local:
        return scatter(_take(inner, dim, start, 0, rows.size), rows)
    own = _take(inner, dim, start, rows.start, rows.stop)
    if plan.is_local:
        return own
    to_previous = _take(inner, dim, start, rows.start - plan.above, rows.start)
    to_next = _take(inner, dim, start, rows.stop, rows.stop + plan.below)
    from_previous, from_next = group.exchange(to_previous, to_next)()
    if start <= rows.start and rows.stop <= stop:  # a view of what autograd may still use
        own = own.clone()
    if rows.start:
        own.narrow(dim, 0, plan.below).add_(from_previous)
    if rows.stop < rows.size:
        own.narrow(dim, own.shape[dim] - plan.above, plan.above).add_(from_next)
    return own


def gather(features: Tensor, rows: Rows) -> Tensor:
    """All rows of the map; without gradient."""
    before, after = math.prod(features.shape[: rows.dim]), math.prod(features.shape[rows.dim + 1 :])
    everything = rows.group.gather(features.reshape(1, before, -1, after), rows.lengths)
    return everything.view(*features.shape[: rows.dim], rows.size, *features.shape[rows.dim + 1 :])


def scatter(everything: Tensor, rows: Rows) -> Tensor:
    """This process's rows of the sum over the processes; without gradient."""
    shape = (*everything.shape[: rows.dim], rows.stop - rows.start, *everything.shape[rows.dim + 1 :])
    before, after = math.prod(shape[: rows.dim]), math.prod(shape[rows.dim + 1 :])
    return rows.group.sum_of_own(everything.reshape(1, before, -1, after), rows.lengths).reshape(shape)


def _filled(features: Tensor, dim: int, count: int, value: float = 0.0) -> Tensor:
    """`count` rows of one value."""
    shape = list(features.shape)
    shape[dim] = count
    return _laid_out(features.new_full(shape, value), features)


def _take(part: Tensor, dim: int, first: int, start: int, stop: int, value: float = 0.0) -> Tensor:
    """Rows `start` to `stop`, where row `first` is the first of `part`; `value` where it has none."""
    last = first + part.shape[dim]
    low, high = max(start, first), min(stop, last)
    if low >= high:
        return _filled(part, dim, stop - start, value)
    inner = part.narrow(dim, low - first, high - low)
    parts = [_filled(part, dim, low - start, value), inner, _filled(part, dim, stop - high, value)]
    parts = [each for each in parts if each.shape[dim]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _laid_out(part: Tensor, features: Tensor) -> Tensor:
    """A part in the layout of the map, so that what is joined has it, too."""
    if features.ndim != 4 or features.device.type == "cpu":
        return part
    return part.contiguous(memory_format=layout_of(features))


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        joined = join(features, plan)[0]
        is_view = plan.rows.start <= plan.own[0] and plan.own[1] <= plan.rows.stop
        return joined.clone() if is_view else joined  # nobody may change one through the other

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return give_back(gradient, ctx.plan), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return gather(features, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return scatter(gradient, ctx.rows), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: SpatialGroup) -> Tensor:
        ctx.group = group
        # Gathered and added in one order, as norms do it: `all_reduce` is no part of strips that take turns.
        parts = group.gather(values.detach().reshape(1, 1, 1, -1), [1] * group.size)
        return parts.sum(2).view(values.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.group.all_reduce(gradient.clone(memory_format=torch.contiguous_format)), None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: SpatialGroup) -> Tensor:
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.group.size, None


OWN_FUNCTIONS: tuple[type, ...] = (_Fetch, _Gather, _Sum, _Share)


def aligned(tensor: Tensor, rows: Rows) -> Tensor:
    """A tensor, whole or marked, with the rows of `rows` in its dimension `rows.dim`; what has one row there, or no
    such dimension (a negative one), whole."""
    if rows.dim < 0 or shape_of(tensor)[rows.dim] == 1:
        return whole(tensor)  # it may be cut along another dimension
    here = rows_of(tensor)
    if here is None:
        return own_rows(tensor, rows)
    return recut(tensor, rows) if here.dim == rows.dim else own_rows(whole(tensor), rows)
