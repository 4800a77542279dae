"""What a training step needs, counted without data, without a GPU and without the memory itself.

The step is run on PyTorch's fake tensors, which have shapes and lifetimes but no contents; what is counted is the
bytes of every tensor storage alive at once. Workspaces that a kernel takes and gives back inside are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.size import Size

Part = Literal["parameters", "optimizer", "gradients", "kept", "momentary"]


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step with Adam, at the moment when most is alive, by what they are for."""

    parameters: int
    """With buffers."""
    optimizer: int
    """Adam's two moments."""
    gradients: int
    """Of parameters, as far as they are there at that moment."""
    kept: int
    """Alive since the forward pass, for the backward pass: activations."""
    momentary: int
    """All the rest: what the operations of that moment work with."""

    @property
    def peak(self) -> int:
        return self.parameters + self.optimizer + self.gradients + self.kept + self.momentary


def estimate_step_memory(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], size: Size, batch_size: int = 1, bf16: bool = False
) -> StepMemory:
    """Count one training step (forward, loss, backward, Adam) on images of `size`, with bf16 autocast if asked.

    model: takes normalised images (B, 3, H, W) and returns logits (B, 1, H, W). Its parameters and buffers are
    replaced by fake ones: it is of no use afterwards. loss: takes logits and masks (B, H, W), returns (B,).
    """
    mode = FakeTensorMode()
    _make_fake(model, mode)
    with mode, _StorageLedger() as ledger:
        ledger.name("parameters", (*model.parameters(), *model.buffers()))
        optimizer = torch.optim.Adam(model.parameters())
        _make_moments(optimizer, model)
        ledger.name("optimizer", (each for state in optimizer.state.values() for each in state.values()))
        ledger.begin_step()
        images = torch.zeros(batch_size, 1, size.height, size.width, dtype=torch.uint8)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        # Held until the weights have moved, as training holds them.
        _held = compute_gradients(
            model, images, images[:, 0], loss, autocast, after_forward=lambda: ledger.name_rest("kept")
        )
        ledger.name("gradients", (each.grad for each in model.parameters() if each.grad is not None))
        optimizer.step()
    return ledger.at_peak()


def _make_moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Adam's moments are born in its first step, and stay."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(mode.from_tensor(parameter.detach())))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, mode.from_tensor(buffer))


@dataclass(eq=False)
class _Entry:
    num_bytes: int
    born: int
    died: int | None = None
    part: Part = "momentary"


class _StorageLedger(TorchDispatchMode):
    """Writes down all storages that operations make, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self._moment = 0
        self._entries: list[_Entry] = []
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self.begin_step()

    def begin_step(self) -> None:
        """Forget the dead, and look for the peak again."""
        self._entries = [entry for entry in self._entries if entry.died is None]
        self.peak, self._peak_moment = self.alive, self._moment

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._enter(leaf)
        return result

    def name(self, part: Part, tensors: Iterable[Tensor]) -> None:
        """Say what the storages of `tensors` are for."""
        for tensor in tensors:
            self._enter(tensor).part = part

    def name_rest(self, part: Part) -> None:
        """Say what all storages are for that are alive and have no name yet."""
        for entry in self._entries:
            if entry.died is None and entry.part == "momentary":
                entry.part = part

    def at_peak(self) -> StepMemory:
        """What was alive at the moment of the peak."""
        sums: dict[Part, int] = {"parameters": 0, "optimizer": 0, "gradients": 0, "kept": 0, "momentary": 0}
        for entry in self._entries:
            if entry.born <= self._peak_moment and (entry.died is None or entry.died > self._peak_moment):
                sums[entry.part] += entry.num_bytes
        return StepMemory(**sums)

    def _enter(self, tensor: Tensor) -> _Entry:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._moment += 1
            entry = _Entry(storage.nbytes(), self._moment)
            self._known[storage] = entry
            self._entries.append(entry)
            self.alive += entry.num_bytes
            if self.alive > self.peak:
                self.peak, self._peak_moment = self.alive, self._moment
            weakref.finalize(storage, self._free, entry)
        return self._known[storage]

    def _free(self, entry: _Entry) -> None:
        self._moment += 1
        entry.died = self._moment
        self.alive -= entry.num_bytes
