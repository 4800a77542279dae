"""Batch norm over processes on any device: the layer."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glioma_dist.scale.tiled_statistics import batch_moments, update_running


class ProcessesBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over (all processes' B, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, H, W), of any float type; statistics are kept in fp32 at least."""
        if not self.training:
            return super().forward(features)
        output, mean, variance, count = _NormaliseOverProcesses.apply(features, self.weight, self.bias, self.eps)
        update_running(self, mean, variance, count)
        return output


OVER_PROCESSES = (ProcessesBatchNorm2d, nn.SyncBatchNorm)
"""Norms with statistics of all processes, subclasses included."""


class _NormaliseOverProcesses(torch.autograd.Function):
    """Forward and backward of batch norm (Ioffe and Szegedy 2015, arXiv 1502.03167, section 3), sums over processes."""

    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        mean, variance, count = batch_moments(features, over_processes=True)
        output = torch.batch_norm(features, weight, bias, mean, variance, False, 0.0, eps, False)
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(features, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor):
        features, weight, mean, scale, count = ctx.saved_tensors
        shape = (1, -1, 1, 1)
        exact_gradient = gradient.to(mean.dtype)
        centred = features.to(mean.dtype) - mean.view(shape)
        sum_gradient = exact_gradient.sum((0, 2, 3))
        sum_product = (exact_gradient * centred).sum((0, 2, 3)) * scale
        totals = torch.cat([sum_gradient, sum_product])
        if dist.is_initialized():
            dist.all_reduce(totals)
        mean_gradient, mean_product = (totals / count).chunk(2)
        # dx = weight * scale * (dy - mean(dy) - x_hat * mean(dy * x_hat))
        inner = exact_gradient - mean_gradient.view(shape) - centred * (mean_product * scale).view(shape)
        slope = scale if weight is None else weight * scale
        _, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            (inner * slope.view(shape)).to(features.dtype),
            sum_product if of_weight else None,
            sum_gradient if of_bias else None,
            None,
        )
