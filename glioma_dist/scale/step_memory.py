"""The memory of a training step, and its formula in the size of the image. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

Part = Literal["parameters", "optimizer", "gradients", "kept", "momentary"]
PARTS: tuple[Part, ...] = get_args(Part)
Phase = Literal["forward", "backward", "optimizer"]
Coefficients = tuple[int, int, int, int]
"""Bytes that do not depend on the size, per unit of height, per unit of width, and per unit of both."""
NOTHING: Coefficients = (0, 0, 0, 0)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step with Adam at the moment of the largest memory, by purpose; `peak` is their sum."""

    parameters: int
    """With buffers."""
    optimizer: int
    """Adam's two moments."""
    gradients: int
    """Gradients of parameters that exist at that moment."""
    kept: int
    """Activations: kept from the forward pass for the backward pass."""
    momentary: int
    """Everything else: tensors of the operations of that moment."""
    host: int = field(default=0, kw_only=True)
    """Of host memory, where the level offload keeps activations: not on the device, and no part of `peak`."""
    besides_gradients: int = field(default=0, kw_only=True, compare=False)
    """The most bytes at any moment, gradients of parameters aside; 0 where they were not counted."""

    @property
    def peak(self) -> int:
        return self.parameters + self.optimizer + self.gradients + self.kept + self.momentary

    def with_gradients(self, num_bytes: int) -> StepMemory:
        """Where gradients of so many bytes are held all the time. The peak may then be at another moment, when there
        were fewer of them."""
        memory = replace(self, gradients=num_bytes)
        missing = max(0, self.besides_gradients + num_bytes - memory.peak)
        return replace(memory, momentary=memory.momentary + missing)


@dataclass(frozen=True)
class Moment:
    """When in a step something happens."""

    phase: Phase
    operation: str
    """PyTorch's name of it, as "aten.convolution.default"."""
    module: str
    """The module that runs it in the forward pass, as `named_modules` names it; empty for the whole module."""


@dataclass(frozen=True)
class KeptTensors:
    """What one operation of one module makes in the forward pass and keeps for the backward pass."""

    module: str
    operation: str
    num_bytes: int


@dataclass(frozen=True)
class ModuleStepMemory(StepMemory):
    """The same of a step of any module: also when in the step it is, and what takes it."""

    moment: Moment
    """The operation with which most memory is in use."""
    largest_kept: tuple[KeptTensors, ...]
    """The largest of what stays from the forward to the backward pass, the largest first."""


@dataclass(frozen=True)
class Allocation:
    """One tensor storage of a traced step."""

    num_bytes: int
    born: int
    """Number of the moment at which it was allocated."""
    died: int | None
    part: Part


@dataclass(frozen=True)
class SizeFormula:
    """The memory of a step at any size, for steps that run the same operations at every size. The bytes of every
    storage are then a polynomial in height and width, and the peak is the largest of the polynomials of a few
    moments."""

    moments: tuple[tuple[Coefficients, ...], ...]
    """For each moment that can be the peak, in their order: the coefficients of each of `PARTS`."""
    max_pixels: int
    """Pixels of an image beyond which the formula does not hold, because maps may exceed the limits of kernels."""
    host: Coefficients = NOTHING
    """Of the bytes in host memory."""
    besides_gradients: tuple[Coefficients, ...] = ()
    """For each moment at which most is in use, gradients aside: the coefficients of the sum."""

    def at(self, height: int, width: int) -> StepMemory:
        """The memory at the peak. height, width: in units of 32 pixels."""
        basis = (1, height, width, height * width)
        peaks = [[_at(each, basis) for each in moment] for moment in self.moments]
        besides = max((_at(each, basis) for each in self.besides_gradients), default=0)
        return StepMemory(*max(peaks, key=sum), host=_at(self.host, basis), besides_gradients=besides)

    @classmethod
    def of_trace(
        cls,
        trace: Iterable[Allocation],
        begin: int,
        height: int,
        width: int,
        max_pixels: int,
        host_bytes: Iterable[int] = (),
    ) -> SizeFormula:
        """Make the formula from a step at one size, whose height and width in units are primes that divide no number of
        channels. The bytes of each storage then show whether it grows with the height, the width, both or neither.

        begin: the moment at which the step begins. host_bytes: of each storage in host memory.
        """
        events: list[tuple[int, int, Part, Coefficients]] = []
        for each in trace:
            coefficients = _coefficients(each, height, width)
            events.append((max(begin, each.born), 1, each.part, coefficients))
            if each.died is not None:
                events.append((each.died, -1, each.part, coefficients))
        events.sort(key=lambda event: event[0])
        alive = dict.fromkeys(PARTS, NOTHING)
        found: list[tuple[Coefficients, tuple[Coefficients, ...]]] = []
        """The moments that can be the peak at some size: no other moment is at least as large in all coefficients."""
        besides: list[Coefficients] = []
        """The sums without gradients of the moments for which the same holds of these sums."""
        for number, (moment, sign, part, coefficients) in enumerate(events):
            alive[part] = _added(alive[part], coefficients, sign)
            is_last_of_moment = number + 1 == len(events) or events[number + 1][0] != moment
            if sign < 0 or not is_last_of_moment:
                continue
            total = NOTHING
            for each in alive.values():
                total = _added(total, each)
            rest = _added(total, alive["gradients"], -1)
            if not any(_reaches(other, rest) for other in besides):
                besides = [each for each in besides if not _reaches(rest, each)] + [rest]
            # If two moments are equal at a size, the first is the peak, as in a count at that size.
            if not any(_reaches(other, total) for other, _ in found):
                found = [each for each in found if not _reaches(total, each[0])]
                found.append((total, tuple(alive[name] for name in PARTS)))
        host = NOTHING
        for number in host_bytes:
            host = _added(host, _coefficients(Allocation(number, 0, None, "kept"), height, width))
        return cls(tuple(parts for _, parts in found), max_pixels, host, tuple(besides))

    @classmethod
    def of_json(cls, values: dict) -> SizeFormula:
        """Restore a formula from `dataclasses.asdict`. Raises ValueError, TypeError or KeyError for other values."""
        found = tuple(tuple(tuple(map(int, each)) for each in moment) for moment in values["moments"])
        if not found or any(len(moment) != len(PARTS) or any(len(each) != 4 for each in moment) for moment in found):
            raise ValueError("no formula of a step's memory")
        host = tuple(map(int, values.get("host", NOTHING)))
        besides = tuple(tuple(map(int, each)) for each in values.get("besides_gradients", ()))
        if any(len(each) != len(NOTHING) for each in (host, *besides)):
            raise ValueError("no formula of bytes")
        return cls(found, int(values["max_pixels"]), host, besides)


def _coefficients(allocation: Allocation, height: int, width: int) -> Coefficients:
    number = allocation.num_bytes
    if allocation.part not in ("kept", "momentary"):  # as large at any size, whatever divides them
        return (number, 0, 0, 0)
    if number % (height * width) == 0:
        return (0, 0, 0, number // (height * width))
    if number % height == 0:
        return (0, number // height, 0, 0)
    return (0, 0, number // width, 0) if number % width == 0 else (number, 0, 0, 0)


def _at(coefficients: Coefficients, basis: tuple[int, ...]) -> int:
    return sum(map(int.__mul__, basis, coefficients))


def _added(one: Coefficients, other: Coefficients, sign: int = 1) -> Coefficients:
    return tuple(a + sign * b for a, b in zip(one, other, strict=True))


def _reaches(one: Coefficients, other: Coefficients) -> bool:
    """Whether `one` is as large as `other` at every size."""
    return all(a >= b for a, b in zip(one, other, strict=True))
