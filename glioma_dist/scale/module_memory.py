"""What a training step of any module needs, counted as `memory_estimator.py` counts those of this package."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_leaves, tree_map_only

from glioma_dist.errors import InputError, one_line
from glioma_dist.scale.known_values import KnownValues, drawn_from_zero
from glioma_dist.scale.step_memory import ModuleStepMemory
from glioma_dist.scale.storage_ledger import StorageLedger, count_step

NUM_LARGEST = 10
"""Operations in `ModuleStepMemory.largest_kept`."""
Arguments = tuple[Sequence[Any], Mapping[str, Any]]
"""Of a call: the positional ones, and those with names."""
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> the type in which autocast computes."""


def estimate_step_memory(
    module: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    dtype: torch.dtype = torch.float32,
) -> ModuleStepMemory:
    """Count the memory of one training step of any module: forward pass, loss, backward pass, optimizer.

    Nothing is computed and no memory is taken: the module may be on any device, also on `meta`, and may be far too
    large for this machine. It stays as it is. A GPU needs about 1 GiB more, for its context and kernels' workspaces.

    Args:
        module: It is counted in the mode that it is in: call `module.train()` before.
        inputs: What it takes: the shape of a tensor, the batch first, as (4, 3, 512, 704); or example inputs: a
            tensor, a list or tuple of positional arguments, or a dict of keyword arguments. Where the module looks at
            values of tensors, it sees those of example inputs, of its own constants and of random numbers (from seed
            0). Other values do not exist.
        loss: takes what the module returns, and returns the loss, a tensor; where that has several values, their sum
            is what is trained on. Targets are made in it, as `torch.zeros_like(output)`. By default the output named
            "loss" if there is one, as in transformers with labels; else the sum of the means of all floating outputs.
        optimizer: takes the parameters and returns a `torch.optim.Optimizer`, as
            `partial(torch.optim.SGD, momentum=0.9)`. Its states are those of its second step.
        precision: bf16 or fp16 run the forward pass under autocast.
        dtype: of the input of a given shape, for modules that do not take fp32.

    Returns bytes, by what they are for, at the moment when most is alive; when that is, and which operations keep most.

    Raises InputError where the module has nothing to train, cannot be copied, looks at values that do not exist, or
    has an operation that needs them, which is named; for inputs that are none, and for a loss that is no tensor with a
    gradient.
    """
    kind = type(module).__name__
    make_inputs = _maker_of_inputs(inputs, dtype)
    if precision not in AUTOCAST:
        raise InputError(f"precision {one_line(repr(precision), 80)}: give fp32, bf16 or fp16")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise InputError(f"{kind} has no parameter that requires a gradient: no step trains it")
    if not callable(optimizer):
        raise InputError(f"optimizer {one_line(repr(optimizer), 80)}: give a class or a function, as torch.optim.AdamW")
    counting = partial(_count_module_step, module, make_inputs, loss or partial(_default_loss, kind), optimizer)
    # Wherever it is called: a step is that of a training, and what has no device is counted on the CPU.
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        ledger = counting(AUTOCAST[precision])
    return ModuleStepMemory(**vars(ledger.at_peak()), moment=ledger.at, largest_kept=ledger.largest_kept(NUM_LARGEST))


def _count_module_step(
    module: nn.Module,
    make_inputs: Callable[[KnownValues], Arguments],
    loss: Callable[[Any], Tensor],
    optimizer: Callable[..., torch.optim.Optimizer],
    autocast_type: torch.dtype | None,
) -> StorageLedger:
    mode, known = FakeTensorMode(allow_non_fake_inputs=True), KnownValues()
    copied, kind = _fake_copy(module, mode), type(module).__name__
    ledgers: deque[StorageLedger] = deque(maxlen=1)

    def step(ledger: StorageLedger) -> tuple[Any, ...]:
        ledgers.append(ledger)
        with _named_modules(copied, ledger):
            known.learn_constants(module, copied)
            arguments, named = make_inputs(known)
            ledger.describe(tree_leaves_of((arguments, named), Tensor), "input")
            with torch.autocast("cpu", autocast_type, enabled=autocast_type is not None):
                outputs = copied(*arguments, **named)
            losses = loss(outputs)
            _check_loss(losses, kind)
            ledger.name_rest("kept")
            ledger.phase, ledger.module = "backward", ""
            losses.sum().backward()
        return arguments, named, outputs, losses

    count = partial(count_step, copied, mode, step, optimizer, known)
    with _uncompiled(copied), _explained(kind, ledgers):
        with drawn_from_zero():
            ledger = count()
        unused = [each for each in copied.parameters() if each.requires_grad and each.grad is None]
        if unused:  # an optimizer has no states for them
            copied.zero_grad()
            with drawn_from_zero():
                ledger = count(unused)
    return ledger


def _maker_of_inputs(inputs: Any, dtype: torch.dtype) -> Callable[[KnownValues], Arguments]:
    """Makes the positional and the named arguments of the module, of fake tensors, where a step is counted."""
    if isinstance(inputs, Sequence) and inputs and not tree_leaves_of(inputs, Tensor):
        if not all(isinstance(side, Integral) and not isinstance(side, bool) and side > 0 for side in inputs):
            raise InputError(
                f"inputs {one_line(inputs, 80)}: give a shape, whole numbers above 0, as (4, 3, 512, 704), or tensors"
            )
        inputs = torch.empty(tuple(map(int, inputs)), dtype=dtype, device="meta")
    if not tree_leaves_of(inputs, Tensor):
        raise InputError(f"inputs {one_line(inputs, 80)}: give a shape, as (4, 3, 512, 704), or tensors")

    def make(known: KnownValues) -> Arguments:
        given = tree_map_only(Tensor, known.make_fake, inputs)
        if isinstance(given, Mapping):
            return (), given
        return ((given,), {}) if isinstance(given, Tensor) else (given, {})

    return make


def tree_leaves_of(tree: Any, kind: type) -> list[Any]:
    """All objects of a kind in nested containers, as lists, dicts and the outputs of transformers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, kind)]


def _default_loss(kind: str, outputs: Any) -> Tensor:
    """The loss among a module's outputs; else the sum of the means of those that a step can train."""
    if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
        return outputs["loss"]
    trained = [each for each in tree_leaves_of(outputs, Tensor) if each.is_floating_point() and each.requires_grad]
    if not trained:
        raise InputError(f"{kind} returns {type(outputs).__name__} without floating tensors to train: give a loss")
    means = [each.float().mean() for each in trained]
    return means[0] if len(means) == 1 else torch.stack(means).sum()


def _check_loss(losses: Any, kind: str) -> None:
    if not isinstance(losses, Tensor) or not losses.requires_grad:
        given = "a tensor without a gradient" if isinstance(losses, Tensor) else type(losses).__name__
        raise InputError(f"loss: returned {given}; return a tensor computed from what {kind} returns")


@contextmanager
def _explained(kind: str, ledgers: Sequence[StorageLedger]) -> Generator[None]:
    """Names the operation at which a step could not be counted."""
    try:
        yield
    except InputError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise InputError(
            f"{kind}, its loss or its optimizer looks at values of a tensor ({one_line(error, 100)}{_place(ledgers)}) "
            "that depend on weights, or on inputs that were given as a shape: give example inputs, or count the part "
            "that does not"
        ) from error
    except UnsupportedOperatorException as error:
        raise InputError(
            f"{kind}: {one_line(error, 100)}{_place(ledgers)} has no implementation for fake tensors, so its memory "
            "cannot be counted; torch.library.register_fake adds one"
        ) from error
    except Exception as error:
        last = f" after {ledgers[0].now().operation}{_place(ledgers)}" if ledgers else ""
        raise InputError(
            f"{kind}: a step on tensors without values fails{last}: {type(error).__name__}: {one_line(error, 200)}"
        ) from error


def _place(ledgers: Sequence[StorageLedger]) -> str:
    return f" in {one_line(ledgers[0].module, 80)}" if ledgers and ledgers[0].module else ""


@contextmanager
def _named_modules(module: nn.Module, ledger: StorageLedger) -> Iterator[None]:
    """Within it, the ledger knows which part of `module` runs."""
    outer: list[str] = []

    def enter(name: str, *_: Any) -> None:
        outer.append(ledger.module)
        ledger.module = name

    def leave(*_: Any) -> None:
        ledger.module = outer.pop()

    handles = []
    for name, part in module.named_modules():
        plain = ".".join(each for each in name.split(".") if each != "_orig_mod")  # of torch.compile
        handles.append(part.register_forward_pre_hook(partial(enter, plain)))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fake_copy(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy with fake parameters and buffers on the CPU, where fake tensors have a backward pass without a GPU.

    What two layers share in the module, they share in the copy. Raises InputError where it cannot be copied.
    """
    kind = type(module).__name__
    if any(
        isinstance(each, UninitializedParameter | UninitializedBuffer)
        for each in (*module.parameters(), *module.buffers())
    ):
        raise InputError(f"{kind} has layers whose sizes are not known yet; call it once with inputs first")
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
