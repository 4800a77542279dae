"""Which rows of a map this process has. A module sees a marked tensor in the shape of the whole map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor

from glioma_dist.scale.spatial_group import SpatialGroup


@dataclass(frozen=True)
class Rows:
    """How a tensor is cut along one dimension: process p has `edges[p]` to `edges[p + 1]`, at least one row.

    Rows may be finer than rows of pixels: of tokens (B, H W, C) each row of pixels gives W.
    """

    group: SpatialGroup
    dim: int
    """Counted from the first dimension."""
    edges: tuple[int, ...]

    @property
    def size(self) -> int:
        """Of the whole map."""
        return self.edges[-1]

    @property
    def start(self) -> int:
        return self.edges[self.group.rank]

    @property
    def stop(self) -> int:
        return self.edges[self.group.rank + 1]

    @property
    def lengths(self) -> list[int]:
        return [stop - start for start, stop in pairwise(self.edges)]

    @property
    def has_empty(self) -> bool:
        """Whether some process would have no row; such a map is computed whole on all processes."""
        return min(self.lengths) < 1

    def at(self, dim: int) -> Rows:
        """The same cut of another dimension."""
        return replace(self, dim=dim)

    def cut_at(self, edges: Iterator[int] | list[int]) -> Rows:
        """Another cut of the same dimension."""
        return replace(self, edges=tuple(edges))

    def scaled(self, size: int) -> Rows:
        """The cut of a map of `size` rows that shows the same image: in proportion, rounded down."""
        return self.cut_at([edge * size // self.size for edge in self.edges])


_NAME, _EXACT = "_rows_of_the_map", "_is_exact_in_strips"


def mark(tensor: Tensor, rows: Rows) -> Tensor:
    """Note on `tensor` (this object, not its copies) which rows of a map it has. Returns it."""
    if tensor.shape[rows.dim] != rows.stop - rows.start:
        raise AssertionError(f"{tuple(tensor.shape)} does not have {rows.edges} at {rows.dim} on {rows.group.rank}")
    setattr(tensor, _NAME, rows)
    return tensor


def unmark(tensor: Tensor) -> Tensor:
    """The tensor without its note."""
    if hasattr(tensor, _NAME):
        delattr(tensor, _NAME)
    return tensor


def rows_of(value: Any) -> Rows | None:
    """What `mark` noted; None for whole tensors and all that is no tensor."""
    return getattr(value, _NAME, None) if isinstance(value, Tensor) else None


def marked(tensor: Tensor) -> Rows:
    """What `mark` noted of a tensor that must be marked."""
    rows = rows_of(tensor)
    if rows is None:
        raise AssertionError("no rows are noted")
    return rows


F = TypeVar("F", bound=Callable[..., Any])


def exact(function: F) -> F:
    """A decorator: the function takes marked tensors and marks what it returns. It must ask PyTorch's
    `handle_torch_function` for whoever listens."""
    setattr(function, _EXACT, True)
    return function


def is_exact(function: Any) -> bool:
    """Whether `exact` was said of a function."""
    return getattr(function, _EXACT, False)


def shape_of(tensor: Tensor) -> list[int]:
    """The shape of the whole map."""
    shape, rows = list(tensor.shape), rows_of(tensor)
    if rows is not None:
        shape[rows.dim] = rows.size
    return shape


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in arguments: also in lists, tuples and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            yield from tensors_in(each)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


def map_tensors(function: Callable[[Tensor], Any], values: Any) -> Any:
    """The same arguments with `function(tensor)` for each tensor."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(map_tensors(function, each) for each in values))
    if type(values) in (list, tuple):
        return type(values)(map_tensors(function, each) for each in values)
    if isinstance(values, dict):
        return type(values)((name, map_tensors(function, each)) for name, each in values.items())
    return values
