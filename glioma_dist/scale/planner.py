"""What a training step needs, counted without data, without a GPU and without the memory itself.

The step is run on PyTorch's fake tensors, which have shapes and lifetimes but no contents; what is counted is the
bytes of every tensor storage alive at once. Workspaces that a kernel takes and gives back inside are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glioma_dist.config import Size
from glioma_dist.model.unet import normalise


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step with Adam."""

    states: int
    """Parameters, buffers and Adam's two moments."""
    peak: int
    """The most that is alive at once, states and gradients included."""


def count_step_memory(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], size: Size, batch_size: int = 1, bf16: bool = False
) -> StepMemory:
    """Count one training step (forward, loss, backward, Adam) on images of `size`, with bf16 autocast if asked.

    model: takes normalised images (B, 3, H, W) and returns logits (B, 1, H, W). Its parameters and buffers are
    replaced by fake ones: it is of no use afterwards. loss: takes logits and masks (B, H, W), returns (B,).
    """
    mode = FakeTensorMode()
    _make_fake(model, mode)
    with mode, _StorageCounter() as counter:
        for tensor in (*model.parameters(), *model.buffers()):
            counter.count(tensor)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(2):  # Adam's moments are born in the first step and stay; the second is like all others.
            states, counter.peak = counter.alive, counter.alive
            images = torch.zeros(batch_size, 1, size.height, size.width, dtype=torch.uint8)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(normalise(images))
            loss(logits, images[:, 0]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            del images, logits
    return StepMemory(states, counter.peak)


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(mode.from_tensor(parameter.detach())))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, mode.from_tensor(buffer))


class _StorageCounter(TorchDispatchMode):
    """Adds up the bytes of all storages that operations make, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return result

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, num_bytes: int) -> None:
        self.alive -= num_bytes
