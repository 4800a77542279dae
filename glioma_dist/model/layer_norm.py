"""Layer norm that gives back its input's type and keeps nothing wider than its input for the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class StreamLayerNorm(nn.LayerNorm):
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450) with fp32 statistics, whatever the type of its input.

    Under autocast PyTorch's own returns fp32 on a GPU, and with it the whole stream of tokens between layers becomes
    fp32: twice the memory of what activation checkpointing keeps. On a CPU it returns bf16. Here it is bf16 on both.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (…, C) of any float type. Returns the same shape and type."""
        if tokens.dtype == self.weight.dtype:
            return functional.layer_norm(tokens, self.normalized_shape, self.weight, self.bias, self.eps)
        return _NormaliseTokens.apply(tokens, self.weight, self.bias, self.eps)


class _NormaliseTokens(torch.autograd.Function):
    """Widens its input inside and keeps the narrow one."""

    @staticmethod
    def forward(ctx, tokens: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        output, mean, scale = torch.native_layer_norm(tokens.to(weight.dtype), weight.shape, weight, bias, eps)
        ctx.save_for_backward(tokens, weight, bias, mean, scale)
        return output.to(tokens.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, bias, mean, scale = ctx.saved_tensors
        wide_gradient, wide_tokens = gradient.to(weight.dtype), tokens.to(weight.dtype)
        found = torch.ops.aten.native_layer_norm_backward(
            wide_gradient, wide_tokens, weight.shape, mean, scale, weight, bias, [True, True, True]
        )
        return found[0].to(tokens.dtype), found[1], found[2], None
