"""What a training step of this package needs, counted without data, without a GPU and without the memory itself.

The step is run on PyTorch's fake tensors, which have shapes and lifetimes but no contents; what is counted is the
bytes of every tensor storage alive at once. Workspaces that a kernel takes and gives back inside are not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glioma_dist.model.unet import UNet
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.host_memory import ImaginaryMemory
from glioma_dist.scale.offload import offload_of
from glioma_dist.scale.step_memory import Allocation, StepMemory
from glioma_dist.scale.storage_ledger import StorageLedger, count_step
from glioma_dist.size import Size


def estimate_unet_step(
    model: nn.Module,
    loss: Callable,
    size: Size,
    batch_size: int = 1,
    bf16: bool = False,
    num_micro_batches: int = 1,
    in_backward: bool = False,
) -> StepMemory:
    """Count one training step of this package: on uint8 images of `size`, which the step normalises.

    model: takes normalised images (B, 3, H, W) and returns logits (B, 1, H, W). Its parameters and buffers are
    replaced by fake ones: it is of no use afterwards. loss: takes logits and a batch's masks, returns (B,).
    in_backward: whether each weight moves as soon as its gradient is complete.
    """
    ledger, host = count_unet_step(model, loss, size, batch_size, bf16, num_micro_batches, in_backward)
    return replace(ledger.at_peak(), host=sum(host), besides_gradients=ledger.peak_besides("gradients"))


def trace_unet_step(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    size: Size,
    batch_size: int = 1,
    bf16: bool = False,
    in_backward: bool = False,
) -> tuple[list[Allocation], int, list[int]]:
    """All storages of the step that `estimate_unet_step` counts, the moment at which it begins, and the bytes of each
    storage that waits in host memory."""
    ledger, host = count_unet_step(model, loss, size, batch_size, bf16, in_backward=in_backward)
    return ledger.allocations(), ledger.begin, host


def count_unet_step(
    model: nn.Module,
    loss: Callable,
    size: Size,
    batch_size: int,
    bf16: bool,
    num_micro_batches: int = 1,
    in_backward: bool = False,
    begin: Callable[[StorageLedger], None] = lambda ledger: None,
    after_forward: Callable[[], None] = lambda: None,
) -> tuple[StorageLedger, list[int]]:
    """The ledger of the step that `estimate_unet_step` counts, and the bytes of each storage that waits in host memory.

    begin, after_forward: are called as the step begins, and between its two passes.
    """
    mode = FakeTensorMode()
    host = ImaginaryMemory(mode)
    if (offload := offload_of(model)) is not None:
        offload.host = host
    make_fake(model, mode)
    compute_as_on_gpu(model)

    def step(ledger: StorageLedger) -> tuple[Any, ...]:
        def between(_: Tensor) -> None:
            ledger.name_rest("kept")
            after_forward()

        begin(ledger)
        images = torch.zeros(batch_size, 1, size.height, size.width, dtype=torch.uint8)
        masks = images[:, 0]
        if isinstance(model, UNet) and model.outputs.target is not None:
            masks = torch.zeros(batch_size, 2, size.height, size.width, dtype=torch.uint8)
        autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=bf16)
        compute = partial(compute_gradients, after_forward=between)
        return compute(model, images, masks, loss, autocast, num_micro_batches=num_micro_batches)

    return count_step(model, mode, step, in_backward=in_backward), host.sizes


def compute_as_on_gpu(model: nn.Module) -> None:
    """Make the layers of `model` that compute differently on a GPU (those with `as_on_gpu`) do so on the CPU, too."""
    for module in model.modules():
        if hasattr(module, "as_on_gpu"):
            vars(module)["as_on_gpu"] = True


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Fake parameters and buffers on the CPU in the model's place; what two layers share, they share still."""
    known: dict[int, Tensor] = {}

    def fake_like(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            known[id(tensor)] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        return known[id(tensor)]

    with mode:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                fake = fake_like(parameter).requires_grad_(parameter.requires_grad)
                fake._is_param = True  # as nn.Parameter, which would make a second tensor of it
                setattr(module, name, fake)
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, fake_like(buffer))
