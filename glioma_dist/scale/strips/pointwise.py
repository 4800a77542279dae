"""Functions that compute each element of its own: strips of any rows, as long as all tensors have the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from glioma_dist.errors import InputError
from glioma_dist.scale.strips.exchange import aligned
from glioma_dist.scale.strips.rows import map_tensors, mark, marked, rows_of, shape_of, tensors_in


def pointwise(name: str, function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Compute on the rows of the first tensor that is cut; the others get the same."""
    if kwargs.get("out") is not None:
        raise InputError(
            f"spatial_parallel: {name} writes to `out`, which is not known to be exact in strips; take what it returns"
        )
    given = list(tensors_in((args, kwargs)))
    first = next(each for each in given if rows_of(each) is not None)
    in_place = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    if in_place:
        first = given[0]
        if rows_of(first) is None:
            raise InputError(
                f"spatial_parallel: {name} changes a whole tensor in place by one that is cut; write to a new tensor"
            )
    rows = marked(first)
    place = rows.dim - first.ndim
    if shape_of(first)[rows.dim] != rows.size:
        raise AssertionError("the shape is another one than the rows")

    def own(tensor: Tensor) -> Tensor:
        return aligned(tensor, rows.at(tensor.ndim + place))

    found = function(*map_tensors(own, args), **map_tensors(own, kwargs))
    return mark(found, rows.at(found.ndim + place)) if isinstance(found, Tensor) else found


def copied(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """The same rows as of the first argument, whatever the others are."""
    found, rows = function(*args, **kwargs), rows_of(args[0] if args else next(tensors_in(kwargs)))
    return found if rows is None else mark(found, rows)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """As torch.prelu, whose weight is one number for each channel."""
    rows = rows_of(input)
    return functional.prelu(input, weight) if rows is None else mark(functional.prelu(input, weight), rows)
