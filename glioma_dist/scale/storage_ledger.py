"""Counts the bytes of all tensor storages alive at once in a training step on fake tensors."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glioma_dist.scale.step_memory import Allocation, KeptTensors, Moment, Part, Phase, StepMemory

_DEVICE = torch.ops.prim.device.default
_UPSAMPLE = torch.ops.aten.upsample_bilinear2d.default
_MOST_UPSAMPLED = 2**29
"""Elements of a map up to which its upsampling is hidden from modes below, which may look for tensors of 2^31."""


@dataclass(eq=False)
class _Entry:
    num_bytes: int
    born: int
    source: Moment
    died: int | None = None
    part: Part = "momentary"


class StorageLedger(TorchDispatchMode):
    """Writes down all storages that operations make, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.phase: Phase = "forward"
        self.module = ""
        """Name of the module that runs."""
        self.look: Callable[[Any, tuple, dict, Any], None] | None = None
        """Is called after each operation with its arguments and its result."""
        self._operation: Any = None
        self._moment = 0
        self._entries: list[_Entry] = []
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self.begin_step()

    def begin_step(self) -> None:
        """Forget the dead, and look for the peak again."""
        self._entries = [entry for entry in self._entries if entry.died is None]
        self.begin = self._moment
        self.peak, self._peak_moment, self.at = self.alive, self._moment, self.now()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would wrap each call, so that torch.compile leaves it alone. Nothing is compiled here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is _DEVICE:  # PyTorch asks a fake tensor for it more often than it computes
            return args[0].device
        self._operation = func
        compute = _upsampled if func is _UPSAMPLE else func
        result = compute(*args, **(kwargs or {}))
        for each in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(each, Tensor):
                self._enter(each)
        if self.look is not None:
            self.look(func, args, kwargs or {}, result)
        return result

    def now(self) -> Moment:
        """The pass of the step that runs, its last operation, and the module that runs it."""
        return Moment(self.phase, "" if self._operation is None else str(self._operation), self.module)

    @property
    def moment(self) -> int:
        """Number of the last allocation or freeing."""
        return self._moment

    def born(self, tensor: Tensor) -> int:
        """The moment at which the storage of a tensor was allocated, which no other storage has."""
        return self._enter(tensor).born

    def name(self, part: Part, tensors: Iterable[Tensor]) -> None:
        """Say what the storages of `tensors` are for."""
        for tensor in tensors:
            self._enter(tensor).part = part

    def describe(self, tensors: Iterable[Tensor], operation: str) -> None:
        """Say where tensors come from that no operation of the module makes."""
        for tensor in tensors:
            self._enter(tensor).source = Moment(self.phase, operation, self.module)

    def note(self, part: Part, num_bytes: int) -> None:
        """Count memory that is allocated from now to the end and that no tensor represents."""
        self._add(_Entry(num_bytes, self._moment + 1, self.now(), part=part))

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

    def peak_besides(self, part: Part) -> int:
        """The most bytes that were alive at once in the step, `part` aside."""
        changes = [(max(self.begin, entry.born), entry.num_bytes) for entry in self._entries if entry.part != part]
        changes += [(entry.died, -entry.num_bytes) for entry in self._entries if entry.part != part and entry.died]
        return max(accumulate(num_bytes for _, num_bytes in sorted(changes)), default=0)

    def largest_kept(self, number: int) -> tuple[KeptTensors, ...]:
        """The operations whose results take most memory between the forward and the backward pass."""
        sums: Counter[tuple[str, str]] = Counter()
        for entry in self._entries:
            if entry.part == "kept":
                sums[entry.source.module, entry.source.operation] += entry.num_bytes
        return tuple(KeptTensors(*source, num_bytes) for source, num_bytes in sums.most_common(number))

    def _enter(self, tensor: Tensor) -> _Entry:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            entry = _Entry(storage.nbytes(), self._moment + 1, self.now())
            self._known[storage] = entry
            self._add(entry)
            weakref.finalize(storage, self._free, entry)
        return self._known[storage]

    def _add(self, entry: _Entry) -> None:
        self._moment = entry.born
        self._entries.append(entry)
        self.alive += entry.num_bytes
        if self.alive > self.peak:
            self.peak, self._peak_moment, self.at = self.alive, self._moment, entry.source

    def _free(self, entry: _Entry) -> None:
        self._moment += 1
        entry.died = self._moment
        self.alive -= entry.num_bytes


def _upsampled(features: Tensor, size: Sequence[int], *given: Any, **named: Any) -> Tensor:
    """What upsampling makes of a fake tensor. PyTorch computes it by all operations of a decomposition, in 30 ms."""
    shape = (*features.shape[:2], *size)
    layout = _layout_of(features)
    if not isinstance(features, FakeTensor) or layout is None or math.prod(shape) > _MOST_UPSAMPLED:
        return _UPSAMPLE(features, size, *given, **named)
    return torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=layout)


def _layout_of(features: Tensor) -> torch.memory_format | None:
    """In which PyTorch lays out what it computes of a map; None where its strides may say either."""
    layouts = (torch.contiguous_format, torch.channels_last)
    found = [layout for layout in layouts if features.is_contiguous(memory_format=layout)]
    is_rows = not found and features.stride(3) == 1 < features.shape[3] and features.shape[1] > 1
    if is_rows and features.stride(1) > features.stride(2) > 1:  # some rows of a map whose channels lie apart
        return torch.contiguous_format
    return found[0] if len(found) == 1 else None


def count_step(
    model: nn.Module,
    mode: FakeTensorMode,
    step: Callable[[StorageLedger], tuple[Any, ...]],
    make_optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    above: AbstractContextManager | None = None,
    unused: Sequence[nn.Parameter] = (),
    in_backward: bool = False,
) -> StorageLedger:
    """Count `step`, which makes the gradients of `model`'s fake parameters, and the optimizer's step after it.

    step: returns what a training step holds until its end. make_optimizer: takes the parameters. above: a mode of
    PyTorch in which everything runs, and which sees each operation first. unused: parameters that get no gradient.
    in_backward: whether each weight moves as soon as its gradient is complete.
    """
    with mode, StorageLedger() as ledger, above or nullcontext():
        ledger.name("parameters", (*model.parameters(), *model.buffers()))
        optimizer = make_optimizer(list(model.parameters()))
        _make_states(optimizer, model, ledger, unused)
        ledger.begin_step()
        if in_backward:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(partial(_let_go_of_gradient, ledger))
        _held = step(ledger)
        ledger.name("gradients", (each.grad for each in model.parameters() if each.grad is not None))
        ledger.phase, ledger.module = "optimizer", ""
        if not in_backward:
            optimizer.step()
    return ledger


def _let_go_of_gradient(ledger: StorageLedger, parameter: Tensor) -> None:
    """In place of Adam's step of one weight: as much temporary memory as it takes on a CPU, at most."""
    if parameter.grad is not None:
        ledger.name("gradients", [parameter.grad])
    _temporary = [torch.empty_like(parameter) for _ in range(2)]
    parameter.grad = None


def _make_states(
    optimizer: torch.optim.Optimizer, model: nn.Module, ledger: StorageLedger, unused: Sequence[nn.Parameter]
) -> None:
    """Count the optimizer's states, as Adam's moments, which it allocates in its first step and keeps.

    Adam processes one parameter after another, and frees the last temporary tensor of each in the next one. So it runs
    on the two that take most together, of one parameter of each size, and the moments of all others are added. Other
    optimizers run on all.
    """
    idle = set(map(id, unused))
    trained = [each for each in model.parameters() if each.requires_grad and id(each) not in idle]
    if _is_plain_adam(optimizer):
        (group,) = optimizer.param_groups
        stepped = group["params"] = _decisive_for_adam(trained)
    else:
        stepped = trained
    for parameter in stepped:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    ledger.name_rest("optimizer")
    if _is_plain_adam(optimizer):
        for parameter in trained:
            if parameter not in optimizer.state:
                # The largest, because the moments of a single number have the shape of the number of steps.
                representative = max((each for each in stepped if each.dtype == parameter.dtype), key=Tensor.numel)
                states = optimizer.state[representative].values()
                ledger.note("optimizer", sum(_bytes_of_state(each, representative, parameter) for each in states))


def _decisive_for_adam(trained: Sequence[Tensor]) -> list[Tensor]:
    """Of one parameter of each size, in their order, two neighbours: the second takes two temporary tensors of its
    size, and one of the first is left. All where their types differ."""
    first = {(each.numel(), each.dtype): each for each in reversed(trained)}
    sizes = [each for each in trained if first[each.numel(), each.dtype] is each]
    if len({each.dtype for each in sizes}) != 1:
        return sizes
    pairs = [sizes[:1], *(sizes[number : number + 2] for number in range(len(sizes) - 1))]
    return max(pairs, key=lambda pair: sum(each.nbytes for each in pair) + pair[-1].nbytes)


def _bytes_of_state(state: Tensor, of: Tensor, parameter: Tensor) -> int:
    """What `parameter` has in the place of a state of `of`: a moment, or the number of steps."""
    return parameter.numel() * state.element_size() if state.shape == of.shape else state.nbytes


def _is_plain_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it processes one parameter after another, as Adam does on a CPU if nothing else is asked for."""
    (group, *others) = optimizer.param_groups
    quick = group.get("foreach") or group.get("fused")
    return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and not others and not quick
