"""Norms whose statistics are those of the whole map: batch, group, instance and layer norm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from glioma_dist.scale.strips.exchange import aligned, whole
from glioma_dist.scale.strips.rows import Rows, mark, marked


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch.nn.functional.batch_norm, statistics over the processes that share the images."""
    rows = marked(input)
    if rows.dim == 1:
        given = (running_mean, running_var, weight, bias, training, momentum, eps)
        return functional.batch_norm(whole(input), *given)
    if not training:
        return mark(functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps), rows)
    shape = [-1 if dim == 1 else 1 for dim in range(input.ndim)]
    dims = [dim for dim in range(input.ndim) if dim != 1]
    output, mean, variance = _normalise(input, _viewed(weight, shape), _viewed(bias, shape), dims, eps, rows)
    if running_mean is not None and running_var is not None:
        count = _count(input, dims, rows)
        with torch.no_grad():
            running_mean.lerp_(mean.flatten().to(running_mean), momentum)
            running_var.lerp_((variance * (count / max(1, count - 1))).flatten().to(running_var), momentum)
    return mark(output, rows)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch.nn.functional.instance_norm. One that keeps statistics gets the whole map."""
    rows = marked(input)
    if rows.dim < 2 or running_mean is not None or not use_input_stats:
        given = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return functional.instance_norm(whole(input), *given)
    shape = [-1 if dim == 1 else 1 for dim in range(input.ndim)]
    dims = list(range(2, input.ndim))
    return mark(_normalise(input, _viewed(weight, shape), _viewed(bias, shape), dims, eps, rows)[0], rows)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """As torch.nn.functional.group_norm."""
    rows = marked(input)
    if rows.dim < 2:
        return functional.group_norm(whole(input), num_groups, weight, bias, eps)
    grouped = input.unflatten(1, (num_groups, -1))
    shape = [1, num_groups, -1, *(1 for _ in input.shape[2:])]
    dims = list(range(2, grouped.ndim))
    at = rows.at(rows.dim + 1)
    output = _normalise(grouped, _viewed(weight, shape), _viewed(bias, shape), dims, eps, at)[0]
    return mark(output.flatten(1, 2), rows)


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """As torch.nn.functional.layer_norm."""
    rows = marked(input)
    first = input.ndim - len(normalized_shape)
    if rows.dim < first:
        return mark(functional.layer_norm(input, normalized_shape, weight, bias, eps), rows)
    here = rows.at(rows.dim - first)
    own = [each if each is None else aligned(each, here) for each in (weight, bias)]
    return mark(_normalise(input, *own, list(range(first, input.ndim)), eps, rows)[0], rows)


def _viewed(parameter: Tensor | None, shape: list[int]) -> Tensor | None:
    return None if parameter is None else parameter.view(shape)


def _count(features: Tensor, dims: list[int], rows: Rows) -> int:
    """How many numbers of the whole map each mean is taken of."""
    return math.prod(rows.size if dim == rows.dim else features.shape[dim] for dim in dims)


def _normalise(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, dims: list[int], eps: float, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise over `dims`, the rows among them. Returns the output, and mean and variance without gradient."""
    return _Normalise.apply(features, weight, bias, dims, eps, rows)


class _Normalise(torch.autograd.Function):
    """Forward and backward of a norm (Ioffe and Szegedy 2015, arXiv 1502.03167, section 3), of strips."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor | None, bias: Tensor | None, dims: list[int], eps: float, rows: Rows
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
        mean, variance = _of_all(mean, variance, rows)
        scale = torch.rsqrt(variance + eps)
        output = (wide - mean) * scale
        output = output if weight is None else output * weight
        output = output if bias is None else output + bias
        ctx.save_for_backward(features, weight, bias, mean, scale)
        ctx.dims, ctx.rows, ctx.count = dims, rows, _count(features, dims, rows)
        ctx.mark_non_differentiable(mean, variance)
        return output.to(features.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, mean, scale = ctx.saved_tensors
        gradient = gradient.to(mean.dtype)
        normalised = (features.to(mean.dtype) - mean) * scale
        of_weight = of_bias = None
        if weight is not None and ctx.needs_input_grad[1]:
            of_weight = (gradient * normalised).sum_to_size(weight.shape).to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            of_bias = gradient.sum_to_size(bias.shape).to(bias.dtype)
        inner = gradient if weight is None else gradient * weight
        sums = torch.stack([inner.sum(ctx.dims, True), (inner * normalised).sum(ctx.dims, True)])
        mean_inner, mean_product = ctx.rows.group.all_reduce(sums) / ctx.count
        # dx = (dy - mean(dy) - x_hat mean(dy x_hat)) / deviation, means over the whole map
        of_features = (inner - mean_inner - normalised * mean_product) * scale
        return of_features.to(features.dtype), of_weight, of_bias, None, None, None


def _of_all(mean: Tensor, variance: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and variance of the whole map, from those of the strips."""
    group = rows.group
    here = torch.stack([mean.flatten(), variance.flatten()])
    moments = group.gather(here.view(1, 1, 1, -1), [1] * group.size).view(group.size, 2, *mean.shape)
    # Chan, Golub and LeVeque 1979. Shares are numbers of Python: a tensor of them would be copied to the GPU.
    shares = [length / rows.size for length in rows.lengths]
    joined = sum((share * each[0] for share, each in zip(shares, moments, strict=True)), start=torch.zeros_like(mean))
    parts = (share * (each[1] + (each[0] - joined) ** 2) for share, each in zip(shares, moments, strict=True))
    return joined, sum(parts, start=torch.zeros_like(mean))


OWN_FUNCTIONS: tuple[type, ...] = (_Normalise,)
