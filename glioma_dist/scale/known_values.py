"""Values of the fake tensors that depend on no weight: of example inputs, constants and random draws.

A module may decide by them what it computes, as transformers do by an attention mask, or layers that are skipped at
random.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

MAX_ELEMENTS = 2**20
"""Larger tensors have no known values, because they would take memory and time."""
_ATEN = torch.ops.aten
ONLY_SHAPES = frozenset(
    getattr(_ATEN, name).default
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    )
)
"""Operations whose results do not depend on the values of the tensor that they take."""


@contextmanager
def drawn_from_zero() -> Generator[None]:
    """Within it, random numbers of PyTorch, Python and NumPy are those of seed 0. After it, those come that would have
    come without it."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        random.setstate(random.Random(0).getstate())
        np.random.set_state(np.random.RandomState(0).get_state())
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


class KnownValues(TorchDispatchMode):
    """Computes what depends on known values alone a second time, on real tensors. It stands above a FakeTensorMode."""

    def __init__(self) -> None:
        super().__init__()
        self._known = WeakTensorKeyDictionary()

    def make_fake(self, example: Tensor) -> Tensor:
        """A fake tensor as `example`, whose values are known."""
        fake = torch.empty_strided(example.shape, example.stride(), dtype=example.dtype)
        self._known.pop(fake, None)
        self._learn(fake, example)
        return fake.requires_grad_(example.requires_grad)

    def _learn(self, fake: Tensor, example: Tensor) -> None:
        if example.device.type != "meta" and not isinstance(example, FakeTensor) and example.numel() <= MAX_ELEMENTS:
            with _disable_current_modes():
                self._known[fake] = example.detach().to("cpu", copy=True)

    def learn_constants(self, module: nn.Module, fake: nn.Module) -> None:
        """Know the buffers of a module that hold no fractions, as tables of positions, in its fake copy."""
        for buffer, copied in zip(module.buffers(), fake.buffers(), strict=True):
            if not buffer.is_floating_point():
                self._learn(copied, buffer)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is _ATEN.index.Tensor:
            args = (args[0], self._as_positions(args[1]), *args[2:])
        leaves, structure = tree_flatten((args, kwargs))
        values = self._values(func, leaves)
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if values is None:
                raise
            return tree_map_only(Tensor, self.make_fake, _compute(func, values, structure))
        made, made_structure = tree_flatten(result)
        is_small = all(not isinstance(each, Tensor) or each.numel() <= MAX_ELEMENTS for each in made)
        is_noted = False
        if values is not None and is_small:
            with suppress(RuntimeError, IndexError):  # of memory that nothing was written into yet
                self._note(made, tree_flatten(_compute(func, values, structure))[0])
                is_noted = True
        if not is_noted:
            self._forget(_written(func, args, kwargs))
        return tree_unflatten(made, made_structure)

    def _values(self, func: Any, leaves: Sequence[Any]) -> list[Any] | None:
        """The real tensors for the fake ones among `leaves`; None where one is not known."""
        found = []
        for leaf in leaves:
            value = leaf
            if isinstance(leaf, FakeTensor):
                value = self._known.get(leaf)
                if value is None and func in ONLY_SHAPES:
                    with _disable_current_modes():
                        value = torch.zeros((), dtype=leaf.dtype).expand(leaf.shape)
                if value is None:
                    return None
            elif isinstance(leaf, Tensor) and (leaf.numel() > MAX_ELEMENTS or leaf.device.type == "meta"):
                return None
            if isinstance(leaf, torch.device) and leaf.type != "cpu":
                return None
            found.append(value)
        return found

    def _note(self, made: Sequence[Any], found: Sequence[Any]) -> None:
        for fake, value in zip(made, found, strict=True):
            if isinstance(fake, FakeTensor) and isinstance(value, Tensor):
                self._known[fake] = value

    def _forget(self, written: Sequence[Tensor]) -> None:
        """Values that an operation overwrites with what is not known, and of all tensors that share their memory."""
        lost = {self._known[each].untyped_storage().data_ptr() for each in written if each in self._known}
        if lost:
            for each in [fake for fake, value in self._known.items() if value.untyped_storage().data_ptr() in lost]:
                del self._known[each]

    def _as_positions(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Known masks among the indices of a tensor as the positions at which they are true: these have shapes."""
        found: list[Tensor | None] = []
        for index in indices:
            value = None if index is None or index.dtype not in (torch.bool, torch.uint8) else self._known.get(index)
            if value is None:
                found.append(index)
                continue
            with _disable_current_modes():
                positions = value.nonzero().unbind(1)
            found += map(self.make_fake, positions)
        return found


def _compute(func: Any, values: Sequence[Any], structure: Any) -> Any:
    with _disable_current_modes():
        args, kwargs = tree_unflatten(values, structure)
        return func(*args, **kwargs)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes into."""
    found = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[number] if number < len(args) else kwargs.get(argument.name)
            found += [each for each in tree_flatten(given)[0] if isinstance(each, Tensor)]
    return found
