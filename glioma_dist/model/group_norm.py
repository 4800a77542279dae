"""Group norm that returns the type of its input and keeps nothing wider than its input for the backward pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glioma_dist.model.layout import layout_of


class StreamGroupNorm(nn.GroupNorm):
    """GroupNorm (Wu & He 2018, arXiv 1803.08494) with fp32 statistics, whatever the type of its input.

    Under autocast on a GPU, PyTorch's GroupNorm returns fp32 and keeps an fp32 copy of its input, which doubles the
    decoder's largest feature maps. On a CPU it keeps and returns bf16. This layer keeps and returns bf16 on both.
    """

    as_on_gpu: bool | None = None
    """Whether a 16-bit input is converted to fp32 inside; None: on every device but the CPU, whose kernel takes fp32
    weights with a bf16 input. The memory estimator sets it, because it counts on the CPU what a GPU does."""

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, H, W) of any float type. Returns the same shape, type and layout."""
        widens = features.device.type != "cpu" if self.as_on_gpu is None else self.as_on_gpu
        is_plain = features.dtype == self.weight.dtype and layout_of(features) == torch.contiguous_format
        if is_plain or not widens:
            return super().forward(features)
        return _NormaliseGroups.apply(features, self.weight, self.bias, self.num_groups, self.eps)


class _NormaliseGroups(torch.autograd.Function):
    """Converts its input to fp32 inside and keeps the 16-bit one. PyTorch's GPU kernel takes contiguous inputs only."""

    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        wide = features.to(weight.dtype, memory_format=torch.contiguous_format)
        output, mean, scale = torch.native_group_norm(wide, weight, bias, *_sizes(features), num_groups, eps)
        ctx.save_for_backward(features, weight, mean, scale)
        ctx.num_groups = num_groups
        return output.to(features.dtype, memory_format=layout_of(features))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, scale = ctx.saved_tensors
        wide_gradient, wide = (
            each.to(weight.dtype, memory_format=torch.contiguous_format) for each in (gradient, features)
        )
        found = torch.ops.aten.native_group_norm_backward(
            wide_gradient, wide, mean, scale, weight, *_sizes(features), ctx.num_groups, [True, True, True]
        )
        of_features = found[0].to(features.dtype, memory_format=layout_of(features))
        return of_features, found[1], found[2], None, None


def _sizes(features: Tensor) -> tuple[int, int, int]:
    """Images, channels, pixels."""
    return features.shape[0], features.shape[1], math.prod(features.shape[2:])
