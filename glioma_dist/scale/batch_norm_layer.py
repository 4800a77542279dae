"""Batch norm over processes: a layer for any device, and a layer that uses PyTorch's GPU kernels."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import _functions

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


class GpuBatchNorm2d(nn.SyncBatchNorm):
    """PyTorch's SyncBatchNorm with its kernels, but the CPU never waits for the GPU.

    PyTorch's layer omits the statistics of processes without images. The CPU needs to know how many remain, so it waits
    three times in each layer (pytorch issue 78549). In this package every process has images.
    """

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, H, W) on a GPU, of any float type; statistics are kept in fp32 at least."""
        if not self.is_exchanging:
            return super().forward(features)
        self.num_batches_tracked.add_(1)
        running = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        group = self.process_group or dist.group.WORLD
        return _NormaliseOnGpus.apply(
            features, self.weight, self.bias, *running, self.eps, self.momentum, group, dist.get_world_size(group)
        )

    @property
    def is_exchanging(self) -> bool:
        """Whether several processes share statistics now; all norms of this package do in training. With `momentum`
        None (a mean over all batches so far) PyTorch's own code runs."""
        tracked = self.track_running_stats and self.momentum is not None
        return self.training and tracked and dist.is_initialized() and dist.get_world_size() > 1


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


class _NormaliseOnGpus(_functions.SyncBatchNorm):
    """The forward pass of PyTorch's function for processes that all have images; the backward pass is unchanged."""

    @staticmethod
    def forward(
        ctx,
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
        group: dist.ProcessGroup,
        num_processes: int,
    ) -> Tensor:
        if not features.is_contiguous(memory_format=torch.channels_last):
            features = features.contiguous()
        mean, scale = torch.batch_norm_stats(features, eps)
        here = torch.cat([mean, scale, mean.new_full((1,), features.numel() // len(mean))])
        gathered = here.new_empty(num_processes * len(here))
        dist.all_gather_into_tensor(gathered, here, group)
        means, scales, counts = gathered.view(num_processes, -1).split(len(mean), dim=1)
        mean, scale = torch.batch_norm_gather_stats_with_counts(
            features, means, scales, running_mean, running_var, momentum, eps, counts.reshape(-1).to(running_mean.dtype)
        )
        ctx.save_for_backward(features, weight, mean, scale, counts.to(torch.int32))
        ctx.process_group = group
        return torch.batch_norm_elemt(features, weight, bias, mean, scale, eps)
