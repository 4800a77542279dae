"""Batch norm whose statistics are taken over all processes, so that many processes equal one.

On GPUs the layers derive from PyTorch's SyncBatchNorm, and from timm's if an activation belongs to the norm, without
the reads from the GPU in PyTorch's code. Both refuse CPU tensors, so there is also a layer for any device.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from glioma_dist.errors import InputError
from glioma_dist.model.modules import depends_on_batch, rebuild, replace_modules
from glioma_dist.scale.batch_norm_layer import GpuBatchNorm2d, ProcessesBatchNorm2d


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Give each batch norm of `model`, in place, the statistics of the whole global batch.

    Weights, buffers, their names, and the activations of timm's norms stay as they are. Call it before the model is
    wrapped for several processes. Returns `model`, or, where that is one norm itself, what takes its place.

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
    return new_of("", model) or model  # a model that is one norm


def counterparts_on(device: torch.device) -> dict[type[nn.Module], type[nn.Module]]:
    """Norms of one process, and what takes their place over several. By exact class: a subclass may compute something
    else."""
    on_gpu = device.type == "cuda"
    found: dict[type[nn.Module], type[nn.Module]]
    found = {nn.BatchNorm2d: GpuBatchNorm2d if on_gpu else ProcessesBatchNorm2d}
    if "timm" in sys.modules:  # else no module of the model can be one of its norms
        from glioma_dist.scale import timm_batch_norm

        found |= timm_batch_norm.GPU_COUNTERPARTS if on_gpu else timm_batch_norm.CPU_COUNTERPARTS
    return found
