"""What a training step needs, counted without data, without a GPU and without the memory itself.

The step is run on PyTorch's fake tensors, which have shapes and lifetimes but no contents; what is counted is the
bytes of every tensor storage alive at once. Workspaces that a kernel takes and gives back inside are not seen.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glioma_dist.errors import InputError, one_line
from glioma_dist.model.unet import UNet
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.step_memory import Allocation, Part, StepMemory
from glioma_dist.size import Size


def estimate_step_memory(
    module: nn.Module,
    input_shape: Sequence[int],
    loss: Callable[[Any], Tensor],
    *,
    bf16: bool = False,
    dtype: torch.dtype = torch.float32,
) -> StepMemory:
    """Count the memory of one training step of any module: forward pass, loss, backward pass, Adam.

    Nothing is computed and no memory is taken: the module may be on any device, also on `meta`, and may be far too
    large for this machine. It stays as it is. A GPU needs about 1 GiB more, for its context and kernels' workspaces.

    Args:
        module: takes one tensor. It is counted in the mode that it is in: call `module.train()` before.
        input_shape: of that tensor, the batch first, as (4, 3, 512, 704).
        loss: takes what the module returns, and returns the loss, a tensor; where that has several values, their sum
            is what is trained on. Targets are made in it, as `torch.zeros_like(output)`.
        bf16: run the forward pass under bf16 autocast.
        dtype: of the input, for modules that do not take fp32.

    Returns bytes, by what they are for, at the moment when most is alive.

    Raises InputError where the module has nothing to train, cannot be copied, or looks at values of tensors, which
    are not there; for a shape that is none, and for a loss that is no tensor with a gradient.
    """
    if not all(isinstance(side, int) and side > 0 for side in input_shape):
        raise InputError(f"input_shape {one_line(input_shape, 80)}: give whole numbers above 0, as (4, 3, 512, 704)")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise InputError(f"{type(module).__name__} has no parameter that requires a gradient: no step trains it")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copied = _fake_copy(module, mode)

    def step(ledger: _StorageLedger) -> tuple[Any, ...]:
        inputs = torch.zeros(tuple(input_shape), dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = copied(inputs)
        losses = loss(outputs)
        if not isinstance(losses, Tensor) or not losses.requires_grad:
            given = "a tensor without a gradient" if isinstance(losses, Tensor) else type(losses).__name__
            raise InputError(f"loss: gave {given} for what {type(module).__name__} returns; return a tensor of it")
        ledger.name_rest("kept")
        losses.sum().backward()
        return inputs, outputs, losses

    try:
        with _uncompiled(copied):
            return _count_step(copied, mode, step).at_peak()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise InputError(
            f"{type(module).__name__} or its loss looks at the values of a tensor ({one_line(error, 100)}), and "
            "counting has none; count the part of it that does not"
        ) from error


def estimate_unet_step(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], size: Size, batch_size: int = 1, bf16: bool = False
) -> StepMemory:
    """Count one training step of this package: on uint8 images of `size`, which the step normalises.

    model: takes normalised images (B, 3, H, W) and returns logits (B, 1, H, W). Its parameters and buffers are
    replaced by fake ones: it is of no use afterwards. loss: takes logits and a batch's masks, returns (B,).
    """
    return _count_unet_step(model, loss, size, batch_size, bf16).at_peak()


def trace_unet_step(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], size: Size, batch_size: int = 1, bf16: bool = False
) -> tuple[list[Allocation], int]:
    """All storages of the step that `estimate_unet_step` counts, and the moment at which it begins."""
    ledger = _count_unet_step(model, loss, size, batch_size, bf16)
    return ledger.allocations(), ledger.begin


def _count_unet_step(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], size: Size, batch_size: int, bf16: bool
) -> _StorageLedger:
    mode = FakeTensorMode()
    make_fake(model, mode)
    compute_as_on_gpu(model)

    def step(ledger: _StorageLedger) -> tuple[Any, ...]:
        images = torch.zeros(batch_size, 1, size.height, size.width, dtype=torch.uint8)
        masks = images[:, 0]
        if isinstance(model, UNet) and model.outputs.target is not None:
            masks = torch.zeros(batch_size, 2, size.height, size.width, dtype=torch.uint8)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        return compute_gradients(model, images, masks, loss, autocast, after_forward=lambda: ledger.name_rest("kept"))

    return _count_step(model, mode, step)


def compute_as_on_gpu(model: nn.Module) -> None:
    """Make the layers of `model` that compute differently on a GPU (those with `as_on_gpu`) do so on the CPU, too."""
    for module in model.modules():
        if hasattr(module, "as_on_gpu"):
            vars(module)["as_on_gpu"] = True


def _count_step(
    model: nn.Module, mode: FakeTensorMode, step: Callable[[_StorageLedger], tuple[Any, ...]]
) -> _StorageLedger:
    """Count `step`, which makes the gradients of `model`'s fake parameters, and Adam's step after it.

    step: returns what a training step holds until its end.
    """
    with mode, _StorageLedger() as ledger:
        ledger.name("parameters", (*model.parameters(), *model.buffers()))
        optimizer = torch.optim.Adam(model.parameters())
        _make_moments(optimizer, model, ledger)
        ledger.begin_step()
        _held = step(ledger)
        ledger.name("gradients", (each.grad for each in model.parameters() if each.grad is not None))
        optimizer.step()
    return ledger


def _make_moments(optimizer: torch.optim.Optimizer, model: nn.Module, ledger: _StorageLedger) -> None:
    """Count Adam's moments, which it allocates in its first step and keeps.

    Adam processes one parameter after another and frees its temporary memory for each. So it runs on one parameter of
    each size only, which shows the peak, and the moments of all other parameters are added.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = {(each.numel(), each.dtype): each for each in reversed(trained)}
    (group,) = optimizer.param_groups
    group["params"] = [each for each in trained if first[each.numel(), each.dtype] is each]
    for parameter in group["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    ledger.name("optimizer", (each for state in optimizer.state.values() for each in state.values()))
    for parameter in trained:
        representative = first[parameter.numel(), parameter.dtype]
        if representative is not parameter:
            ledger.note("optimizer", sum(each.nbytes for each in optimizer.state[representative].values()))


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Fake parameters and buffers on the CPU in the model's place; what two layers share, they share still."""
    known: dict[int, Tensor] = {}

    def fake_like(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            with mode:
                known[id(tensor)] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        return known[id(tensor)]

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(fake_like(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, fake_like(buffer))


def _fake_copy(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy with fake parameters and buffers on the CPU, where fake tensors have a backward pass without a GPU.

    What two layers share in the module, they share in the copy. Raises InputError where it cannot be copied.
    """
    kind = type(module).__name__
    if any(
        isinstance(each, UninitializedParameter | UninitializedBuffer)
        for each in (*module.parameters(), *module.buffers())
    ):
        raise InputError(f"{kind} has layers whose sizes are not known yet; call it once before")
    known: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        with mode:
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        is_parameter = isinstance(tensor, nn.Parameter)
        known[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake
    try:
        return copy.deepcopy(module, known)
    except Exception as error:
        raise InputError(f"{kind} cannot be copied (copy.deepcopy: {one_line(error, 200)})") from error


def _uncompiled(module: nn.Module) -> AbstractContextManager:
    """Within it, layers that torch.compile has are run as they were written."""
    if any(hasattr(each, "_orig_mod") or each._compiled_call_impl is not None for each in module.modules()):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


_DEVICE = torch.ops.prim.device.default


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
        self.begin = self._moment
        self.peak, self._peak_moment = self.alive, self._moment

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _DEVICE:  # PyTorch asks for it more often than it computes
            return result
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._enter(leaf)
        return result

    def name(self, part: Part, tensors: Iterable[Tensor]) -> None:
        """Say what the storages of `tensors` are for."""
        for tensor in tensors:
            self._enter(tensor).part = part

    def note(self, part: Part, num_bytes: int) -> None:
        """Count memory that is allocated from now to the end and that no tensor represents."""
        self._add(_Entry(num_bytes, self._moment + 1, part=part))

    def name_rest(self, part: Part) -> None:
        """Say what all storages are for that are alive and have no name yet."""
        for entry in self._entries:
            if entry.died is None and entry.part == "momentary":
                entry.part = part

    def allocations(self) -> list[Allocation]:
        """All storages that were alive in the step, or since before it."""
        return [Allocation(entry.num_bytes, entry.born, entry.died, entry.part) for entry in self._entries]

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
            entry = _Entry(storage.nbytes(), self._moment + 1)
            self._known[storage] = entry
            self._add(entry)
            weakref.finalize(storage, self._free, entry)
        return self._known[storage]

    def _add(self, entry: _Entry) -> None:
        self._moment = entry.born
        self._entries.append(entry)
        self.alive += entry.num_bytes
        if self.alive > self.peak:
            self.peak, self._peak_moment = self.alive, self._moment

    def _free(self, entry: _Entry) -> None:
        self._moment += 1
        entry.died = self._moment
        self.alive -= entry.num_bytes
