"""Functions that add up over rows, or look at all of them: means, products of matrices, attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from glioma_dist.scale.strips.exchange import aligned, total, whole
from glioma_dist.scale.strips.rows import Rows, mark, marked, rows_of, shape_of


def sum_over(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """As torch.sum."""
    rows, dims = marked(input), _dims(input, dim)
    if rows.dim not in dims:
        return mark(torch.sum(input, dims, keepdim, dtype=dtype), rows.at(_left(rows.dim, dims, keepdim)))
    values = input if dtype is None else input.to(dtype)
    found = total(torch.sum(values, dims, keepdim, dtype=_wide(values.dtype)), rows.group)
    return found.to(_sum_type(values.dtype))


def mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """As torch.mean."""
    rows, dims = marked(input), _dims(input, dim)
    if rows.dim not in dims:
        return mark(torch.mean(input, dims, keepdim, dtype=dtype), rows.at(_left(rows.dim, dims, keepdim)))
    values = input if dtype is None else input.to(dtype)
    count = math.prod(shape_of(input)[each] for each in dims)
    found = total(torch.sum(values, dims, keepdim, dtype=_wide(values.dtype)), rows.group)
    return (found / count).to(values.dtype)


def var(
    input: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: int | None = None
) -> Tensor:
    """As torch.var."""
    return var_mean(input, dim, unbiased, keepdim, correction=correction)[0]


def std(
    input: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: int | None = None
) -> Tensor:
    """As torch.std."""
    return _unary(torch.sqrt, var(input, dim, unbiased, keepdim, correction=correction))


def var_mean(
    input: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: int | None = None
) -> tuple[Tensor, Tensor]:
    """As torch.var_mean."""
    rows, dims = marked(input), _dims(input, dim)
    correction = int(unbiased) if correction is None else correction
    if rows.dim not in dims:
        found = torch.var_mean(input, dims, correction=correction, keepdim=keepdim)
        here = rows.at(_left(rows.dim, dims, keepdim))
        return mark(found[0], here), mark(found[1], here)
    centre = mean(input, dims, True)
    count = math.prod(shape_of(input)[each] for each in dims)
    squares = mark((input - centre) ** 2, rows)
    found = sum_over(squares, dims, keepdim) / max(0, count - correction)
    return found, centre if keepdim else mean(input, dims)


def norm(
    input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: None = None, *, dtype: Any = None
) -> Tensor:
    """As torch.norm, which takes all orders but the nuclear one for those of a vector."""
    if p == "nuc":
        return torch.norm(whole(input), p, dim, keepdim, dtype=dtype)
    return vector_norm(input, 2 if p in (None, "fro") else p, dim, keepdim, dtype=dtype)


def linalg_norm(input: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """As torch.linalg.norm: of vectors along one dimension; of matrices, if an order is given, along two."""
    num_dims = input.ndim if dim is None else 1 if isinstance(dim, int) else len(dim)
    if ord is not None and num_dims > 1 and ord != "fro":
        return torch.linalg.norm(whole(input), ord, dim, keepdim, dtype=dtype)
    return vector_norm(input, 2 if ord in (None, "fro") else ord, dim, keepdim, dtype=dtype)


def vector_norm(input: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """As torch.linalg.vector_norm, of order 2 or 1 over rows."""
    rows, dims = marked(input), _dims(input, dim)
    if rows.dim not in dims:
        found = torch.linalg.vector_norm(input, ord, dims, keepdim, dtype=dtype)
        return mark(found, rows.at(_left(rows.dim, dims, keepdim)))
    if ord not in (1, 2) or dtype is not None:
        return torch.linalg.vector_norm(whole(input), ord, dims, keepdim, dtype=dtype)
    powers = mark(input.abs() if ord == 1 else input.square(), rows)
    sums = sum_over(powers, dims, keepdim)
    return sums if ord == 1 else sums.sqrt()


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """As torch.matmul of tensors of two dimensions or more."""
    left, right = rows_of(input), rows_of(other)
    if input.ndim < 2 or other.ndim < 2:
        return torch.matmul(whole(input), whole(other))
    at_left, at_right = (None if each is None else each.dim - one.ndim for each, one in ((left, input), (right, other)))
    adds_up = (at_left, at_right) == (-1, -2)
    is_batch = at_left == at_right and at_left is not None and at_left < -2
    if left is not None and right is not None and not adds_up and not is_batch:
        other, right, at_right = whole(other), None, None
    rows, place = (left, at_left) if left is not None else (right, at_right)
    if rows is None or place is None:
        raise AssertionError("no factor is cut")
    if (left is not None and place == -1) or (left is None and place == -2):
        input = aligned(input, rows.at(input.ndim - 1))
        other = aligned(other, rows.at(other.ndim - 2))
        return total(torch.matmul(input, other), rows.group)
    if place < -2:
        input, other = (aligned(each, rows.at(each.ndim + place)) for each in (input, other))
    found = torch.matmul(input, other)
    return mark(found, rows.at(found.ndim + place))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As torch.nn.functional.linear."""
    rows = rows_of(input)
    if rows is None or rows.dim == input.ndim - 1:
        return functional.linear(whole(input), whole(weight), bias)
    return mark(functional.linear(input, whole(weight), bias), rows)


def einsum(equation: str, *operands: Any) -> Tensor:
    """As torch.einsum, of a written equation."""
    given = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    text = equation.replace(" ", "") if isinstance(equation, str) else "..."
    inputs, arrow, output = text.partition("->")
    names = inputs.split(",")
    first = next(number for number, each in enumerate(given) if rows_of(each) is not None)
    rows = marked(given[first])
    if "." in text or not arrow or any(len(set(each)) < len(each) for each in names):
        return torch.einsum(equation, *map(whole, given))
    letter = names[first][rows.dim]
    for number, each in enumerate(given):
        place = names[number].find(letter)
        here = rows_of(each)
        if here is not None and here.dim != place:
            each = whole(each)
        given[number] = aligned(each, rows.at(place))
    found = torch.einsum(equation, *given)
    return mark(found, rows.at(output.index(letter))) if letter in output else total(found, rows.group)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Tensor:
    """As torch.nn.functional.scaled_dot_product_attention: queries stay, keys and values are gathered."""
    attend: Callable[..., Tensor] = functional.scaled_dot_product_attention
    rows = rows_of(query)
    place = 0 if rows is None else rows.dim - query.ndim
    if rows is None or place == -1 or is_causal:
        mask = None if attn_mask is None else whole(attn_mask)
        return attend(*map(whole, (query, key, value)), mask, dropout_p, is_causal, **settings)
    if place == -2:
        key, value = whole(key), whole(value)
    else:
        key, value = (aligned(each, rows.at(each.ndim + place)) for each in (key, value))
    if attn_mask is not None:
        attn_mask = aligned(attn_mask, rows.at(attn_mask.ndim + place))
    return mark(attend(query, key, value, attn_mask, dropout_p, is_causal, **settings), rows)


def _unary(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    rows = rows_of(values)
    return function(values) if rows is None else mark(function(values), rows)


def _dims(input: Tensor, dim: Any) -> list[int]:
    """Dimensions counted from the first one; all of them for None."""
    if dim is None or dim == () or dim == []:
        return list(range(input.ndim))
    return sorted(each % input.ndim for each in ([dim] if isinstance(dim, int) else dim))


def _left(place: int, dims: list[int], keepdim: bool) -> int:
    """Where a dimension is when others are gone."""
    return place if keepdim else place - sum(each < place for each in dims)


def _wide(kind: torch.dtype) -> torch.dtype | None:
    """The type that sums of strips are sent in: bf16 would be rounded twice."""
    return torch.promote_types(kind, torch.float32) if kind.is_floating_point else None


def _sum_type(kind: torch.dtype) -> torch.dtype:
    return kind if kind.is_floating_point or kind.is_complex else torch.int64


def along(input: Tensor, dim: Any, call: Callable[[Tensor], Any]) -> Any:
    """A function along dimensions, as softmax: on strips where the rows are none of them."""
    rows = marked(input)
    dims = _dims(input, dim)
    return call(whole(input)) if rows.dim in dims else _noted(call(input), input, rows, dims)


def _noted(found: Any, input: Tensor, rows: Rows, dims: list[int]) -> Any:
    if isinstance(found, tuple):
        return type(found)([_noted(each, input, rows, dims) for each in found])
    return mark(found, rows if found.ndim == input.ndim else rows.at(_left(rows.dim, dims, False)))
