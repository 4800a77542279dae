"""Layer norm that gives back its input's type and keeps nothing wider than its input for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

MOST_PIECES = 64
"""In which tokens are widened: more would be launches for little memory."""


class StreamLayerNorm(nn.LayerNorm):
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450) with fp32 statistics, whatever the type of its input.

    Under autocast PyTorch's own returns fp32 on a GPU, and with it the whole stream of tokens between layers becomes
    fp32: twice the memory of what activation checkpointing keeps. On a CPU it returns bf16. Here it is bf16 on both.
    """

    elements_at_once: int | None = None
    """How many elements are widened at once, or a share of `MOST_PIECES` where that is more; None: all. It changes the
    order in which the gradients of weight and bias are summed, and no other number."""

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (…, C) of any float type. Returns the same shape and type."""
        if tokens.dtype == self.weight.dtype:
            return functional.layer_norm(tokens, self.normalized_shape, self.weight, self.bias, self.eps)
        return _NormaliseTokens.apply(tokens, self.weight, self.bias, self.eps, self.elements_at_once)


class _NormaliseTokens(torch.autograd.Function):
    """Widens its input inside and keeps the narrow one."""

    @staticmethod
    def forward(ctx, tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, elements: int | None) -> Tensor:
        num_rows = _rows_at_once(tokens, elements)
        if num_rows is None:
            output, mean, scale = torch.native_layer_norm(tokens.to(weight.dtype), weight.shape, weight, bias, eps)
            output = output.to(tokens.dtype)
        else:
            output = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
            moments = []
            for part, target in _pieces(num_rows, tokens, output):
                found = torch.native_layer_norm(part.to(weight.dtype), weight.shape, weight, bias, eps)
                target.copy_(found[0])
                moments.append(found[1:])
            mean, scale = (torch.cat(each, dim=-2) for each in zip(*moments, strict=True))
        ctx.save_for_backward(tokens, weight, bias, mean, scale)
        ctx.num_rows = num_rows
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, bias, mean, scale = ctx.saved_tensors
        if ctx.num_rows is None:
            found = _gradients(gradient, tokens, mean, scale, weight, bias)
            return found[0].to(tokens.dtype), found[1], found[2], None, None
        output = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
        sums = [torch.zeros_like(weight), torch.zeros_like(bias)]
        for *part, target in _pieces(ctx.num_rows, gradient, tokens, mean, scale, output):
            found = _gradients(*part, weight, bias)
            target.copy_(found[0])
            torch._foreach_add_(sums, list(found[1:]))
        return output, *sums, None, None


def _gradients(gradient: Tensor, tokens: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> tuple:
    wide_gradient, wide_tokens = gradient.to(weight.dtype), tokens.to(weight.dtype)
    # The kernel reads the moments as if they were contiguous. Those of some tokens of several images are not.
    moments = mean.contiguous(), scale.contiguous()
    return torch.ops.aten.native_layer_norm_backward(
        wide_gradient, wide_tokens, weight.shape, *moments, weight, bias, [True, True, True]
    )


def _rows_at_once(tokens: Tensor, elements: int | None) -> int | None:
    """How many tokens of each image; None: all."""
    if elements is None or tokens.ndim < 3 or tokens.numel() <= elements:
        return None
    return max(1, elements // (tokens.numel() // tokens.shape[-2]), math.ceil(tokens.shape[-2] / MOST_PIECES))


def _pieces(num_rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors (…, tokens, channels) cut in parallel, a few tokens at a time."""
    return zip(*(each.split(num_rows, dim=-2) for each in tensors), strict=True)
