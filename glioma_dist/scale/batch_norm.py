"""Batch norm whose statistics are taken over all processes, so that many processes equal one.

On GPUs PyTorch's SyncBatchNorm does it, and timm's where an activation belongs to the norm. Both refuse CPU tensors, so
here is the same for any device.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from glioma_dist.errors import InputError
from glioma_dist.model.modules import rebuild, replace_modules
from glioma_dist.scale.tiled_statistics import batch_moments, update_running


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Give each batch norm of `model`, in place, the statistics of the whole global batch.

    Weights, buffers, their names, and the activations of timm's norms stay as they are. Call it before the model is
    wrapped for several processes. Returns `model`.

    Raises:
        InputError: a layer depends on the other images of a batch and has no counterpart over processes. Nothing has
            changed then.
    """
    counterparts = counterparts_on(device)
    done = set(counterparts.values())
    found = [(name, module) for name, module in model.named_modules() if depends_on_batch(module)]
    for name, module in found:
        if type(module) not in counterparts and type(module) not in done:
            raise InputError(
                f"{name} is a {type(module).__name__}, whose statistics over several processes may be "
                "inexact: train with one process, or give another encoder"
            )

    def new_of(_name: str, module: nn.Module) -> nn.Module | None:
        kind = counterparts.get(type(module))
        # process_group: of SyncBatchNorm, all processes
        return None if kind is None else rebuild(module, kind, process_group=None)

    replace_modules(model, new_of)
    return model


def counterparts_on(device: torch.device) -> dict[type[nn.Module], type[nn.Module]]:
    """Norms of one process, and what takes their place over several. By exact class: a subclass may compute something
    else."""
    on_gpu = device.type == "cuda"
    found: dict[type[nn.Module], type[nn.Module]]
    found = {nn.BatchNorm2d: nn.SyncBatchNorm if on_gpu else ProcessesBatchNorm2d}
    if "timm" in sys.modules:  # else no module of the model can be one of its norms
        from glioma_dist.scale import timm_batch_norm

        found |= timm_batch_norm.GPU_COUNTERPARTS if on_gpu else timm_batch_norm.CPU_COUNTERPARTS
    return found


def depends_on_batch(module: nn.Module) -> bool:
    """Whether a layer, its children aside, takes or keeps statistics over the images of a batch."""
    buffers = dict(module.named_buffers(recurse=False))
    return isinstance(module, _BatchNorm) or any(name.startswith("running_") for name in buffers)


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
