"""Convolutions of maps that are cut by rows: of any stride, padding and dilation, transposed ones, too.

What is kept for the backward pass is the strip and its halo; they are joined again there. A strip joined with its halo
would keep most maps twice, once for each of two layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from glioma_dist.scale.strips.exchange import Plan, assemble, give_back, join, whole, windowed
from glioma_dist.scale.strips.rows import Rows, mark, marked, rows_of


@dataclass(frozen=True)
class Window:
    """A window along the rows of a map."""

    kernel: int
    """Rows that it spans, those left out by a dilation included."""
    stride: int
    padding: int
    ceil_mode: bool = False

    def output(self, rows: Rows) -> Rows:
        """The cut of the output: a process has the outputs whose windows begin, but for padding, in its strip."""
        inner = rows.size + 2 * self.padding - self.kernel
        size = (-(-inner // self.stride) if self.ceil_mode else inner // self.stride) + 1
        if self.ceil_mode and (size - 1) * self.stride >= rows.size + self.padding:
            size -= 1  # PyTorch's rule: a window begins in the map or its upper padding
        return rows.cut_at([*(min(size, -(-edge // self.stride)) for edge in rows.edges[:-1]), size])

    def inputs(self, output: Rows) -> list[tuple[int, int]]:
        """The input rows of each process's outputs."""
        return [
            (first * self.stride - self.padding, (last - 1) * self.stride - self.padding + self.kernel)
            for first, last in zip(output.edges, output.edges[1:], strict=False)
        ]


@dataclass(frozen=True)
class How:
    """A convolution's settings, those along the rows as they are within a strip."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    transposed: bool
    output_padding: tuple[int, int]
    groups: int

    @property
    def values(self) -> tuple:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """As torch.conv2d, of a map (B, C, H, W) cut by its rows."""
    settings = (stride, padding, dilation, groups)
    if rows_of(input) is None or marked(input).dim != 2 or input.ndim != 4 or rows_of(weight) is not None:
        return torch.conv2d(whole(input), whole(weight), bias, *settings)
    stride, dilation = pair(stride), pair(dilation)
    reach = tuple(step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True))
    if padding == "same" and any(each % 2 for each in reach):
        input = functional.pad(whole(input), (0, reach[1] % 2, 0, reach[0] % 2))
        return torch.conv2d(input, weight, bias, stride, tuple(each // 2 for each in reach), dilation, groups)
    padding = tuple(each // 2 for each in reach) if padding == "same" else pair(0 if padding == "valid" else padding)
    window = Window(reach[0] + 1, stride[0], padding[0])
    rows = window.output(marked(input))
    if rows.has_empty:
        return torch.conv2d(whole(input), weight, bias, *settings)
    plan = windowed(input, window.inputs(rows))
    how = How(stride, (0, padding[1]), dilation, False, (0, 0), groups)
    return mark(_convolve(input, weight, bias, plan, how), rows)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """As torch.conv_transpose2d, of a map (B, C, H, W) cut by its rows."""
    settings = (stride, padding, output_padding, groups, dilation)
    if rows_of(input) is None or marked(input).dim != 2 or input.ndim != 4 or rows_of(weight) is not None:
        return torch.conv_transpose2d(whole(input), whole(weight), bias, *settings)
    stride, padding, output_padding, dilation = map(pair, (stride, padding, output_padding, dilation))
    rows, reach = marked(input), dilation[0] * (weight.shape[2] - 1)
    size = (rows.size - 1) * stride[0] - 2 * padding[0] + reach + output_padding[0] + 1
    output = rows.cut_at([*(min(size, edge * stride[0]) for edge in rows.edges[:-1]), size])
    # Input i reaches outputs i * stride - padding to that plus `reach`.
    wanted = [
        (
            max(0, math.ceil((first + padding[0] - reach) / stride[0])),
            min(rows.size, (last - 1 + padding[0]) // stride[0] + 1),
        )
        for first, last in zip(output.edges, output.edges[1:], strict=False)
    ]
    if output.has_empty or any(start >= stop for start, stop in wanted):
        return torch.conv_transpose2d(whole(input), weight, bias, *settings)
    # What no input reaches is computed, too: output padding up to one stride, and a stride's rows beyond.
    how = How(stride, (0, padding[1]), dilation, True, (stride[0] - 1, output_padding[1]), groups)
    plan = windowed(input, wanted)
    found = _convolve(input, weight, bias, plan, how)
    first = output.start - (plan.own[0] * stride[0] - padding[0])
    missing = first + output.stop - output.start - found.shape[2]
    if first < 0 or missing > 0:
        found = _with_bias_rows(found, bias, max(0, -first), max(0, missing))
    return mark(found.narrow(2, max(0, first), output.stop - output.start), output)


def _with_bias_rows(found: Tensor, bias: Tensor | None, above: int, below: int) -> Tensor:
    """With rows that no input reaches, which are the bias."""
    fill = found.new_zeros(len(found), found.shape[1], 1, found.shape[3])
    fill = fill if bias is None else fill + bias.to(found.dtype).view(1, -1, 1, 1)
    return torch.cat([fill.expand(-1, -1, above, -1), found, fill.expand(-1, -1, below, -1)], dim=2)


def pair(value: Any) -> tuple[int, int]:
    """A setting of both dimensions, also where it was given as one number."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _convolve(features: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, how: How) -> Tensor:
    device = features.device.type
    if torch.is_autocast_enabled(device):  # a Function's inside is not translated
        features, weight, bias = (
            each if each is None else each.to(torch.get_autocast_dtype(device)) for each in (features, weight, bias)
        )
    if plan.is_own:
        return torch.convolution(features, weight, bias, *how.values)
    return _JoinedConvolution.apply(features, weight, bias, plan, how)


class _JoinedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, how: How) -> Tensor:
        joined, above, below = join(features, plan)
        ctx.save_for_backward(features, weight, above, below)
        ctx.bias_sizes, ctx.plan, ctx.how = None if bias is None else list(bias.shape), plan, how
        return torch.convolution(joined, weight, bias, *how.values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, above, below = ctx.saved_tensors
        plan, needed = ctx.plan, list(ctx.needs_input_grad[:3])
        is_kept = plan.is_local or plan.is_near
        joined = assemble(above, features, below, plan) if is_kept else join(features, plan)[0]
        how = ctx.how
        of_joined, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, joined, weight, ctx.bias_sizes, *how.values, needed
        )
        return give_back(of_joined, plan) if needed[0] else None, of_weight, of_bias, None, None


OWN_FUNCTIONS: tuple[type, ...] = (_JoinedConvolution,)
