"""What each unit of a network (a segment of the encoder, a block of the decoder) keeps, takes and computes in a step,
observed in a step on fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from glioma_dist.model.decoder import CenterBlock
from glioma_dist.model.unet import UNet
from glioma_dist.scale.attention_memory import ATTENTION_KERNELS
from glioma_dist.scale.kernel_limits import starts_kernel
from glioma_dist.scale.step_memory import Allocation
from glioma_dist.scale.storage_ledger import StorageLedger

Like = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and type of a tensor."""
_starts_kernel = lru_cache(None)(starts_kernel)


@dataclass(frozen=True)
class Speed:
    """A device, as far as the time of its operations follows from their FLOPs and bytes (roofline model, Williams et
    al. 2009, doi 10.1145/1498765.1498785)."""

    flops_per_second: float
    bytes_per_second: float
    seconds_per_call: float
    """From one operation to the next, however small they are."""

    def seconds(self, flops: float, num_bytes: float) -> float:
        """The time of one operation."""
        return max(flops / self.flops_per_second, num_bytes / self.bytes_per_second, self.seconds_per_call)


@dataclass
class Work:
    """Computations of a unit."""

    seconds: float = 0.0
    flops: float = 0.0

    def add(self, seconds: float, flops: float) -> None:
        self.seconds += seconds
        self.flops += flops


@dataclass
class ObservedUnit:
    """One unit in an observed step. Moments are the ledger's."""

    begin: int
    end: int = 0
    begin_backward: int | None = None
    """When the gradient of the output is there; None if it has none."""
    inputs: list[int] = field(default_factory=list)
    """When the storages of its inputs were allocated, which tells them apart."""
    output: int = 0
    like: Like | None = None
    """Of its output."""
    attention: list[tuple[int, int]] = field(default_factory=list)
    """Of each call of attention: when it ended, and the bytes that it returned."""
    forward: Work = field(default_factory=Work)
    backward: Work = field(default_factory=Work)
    of_attention: Work = field(default_factory=Work)
    """The part of `forward` that is attention."""
    layers: list[int] = field(default_factory=list)
    """Numbers of the encoder's tileable layers in it."""


class _StandIn(torch.autograd.Function):
    """In the place of a segment: gives its output and its input's gradient, without contents."""

    @staticmethod
    def forward(ctx, features: Tensor, like: Like, _needs_gradient: Tensor | None) -> Tensor:
        ctx.like = _like(features)
        return _empty(like)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _empty(ctx.like), None, None


def _num_bytes(values: Sequence[Any]) -> int:
    """Of all tensors, also in lists and tuples."""
    total = 0
    for each in values:
        if isinstance(each, Tensor):
            total += each.nbytes
        elif isinstance(each, (list, tuple)):
            total += _num_bytes(each)
    return total


def _like(tensor: Tensor) -> Like:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _empty(like: Like) -> Tensor:
    shape, stride, dtype = like
    return torch.empty_strided(shape, stride, dtype=dtype)


class UnitObserver:
    """Notes when each unit of a network computes in a step, and what its operations cost."""

    def __init__(self, speed: Speed, known: Sequence[ObservedUnit] = ()) -> None:
        """known: the segments as they were observed before. Those without tileable layers are not computed again."""
        self.segments: list[ObservedUnit] = []
        self.decoder: list[ObservedUnit] = []
        self.forward_end = 0
        """When the loss is there."""
        self._speed, self._known, self._is_forward = speed, known, True
        self._now: ObservedUnit | None = None
        self._ledger: StorageLedger | None = None
        self._num_tiles = 1
        """For how many tiles an operation stands."""

    def watch_model(self, model: UNet) -> None:
        """Before the step begins."""
        self._run = model.encoder.run_segment
        model.encoder.run_segment = self._run_segment
        for number, layer in enumerate(model.encoder.tileable_layers()):
            if isinstance(layer, nn.Module):
                layer.register_forward_pre_hook(lambda *_, number=number: self._enter_layer(number))
        center = model.decoder.center
        for block in ([center] if isinstance(center, CenterBlock) else []) + list(model.decoder.blocks):
            block.register_forward_pre_hook(lambda _, inputs: self._enter(self.decoder, inputs))
            block.register_forward_hook(lambda _, __, output: self._leave(output))

    def begin_tile(self, number: int) -> None:
        """What follows is done for `number` tiles, until the next call."""
        self._num_tiles = number

    def watch(self, ledger: StorageLedger) -> None:
        """The step begins."""
        self._ledger, ledger.look = ledger, self._look

    def after_forward(self) -> None:
        """The loss is there."""
        self.forward_end, self._is_forward, self._now = self._ledger.moment, False, None

    def _look(self, operation: Any, args: tuple, kwargs: dict, result: Any) -> None:
        unit = self._now
        if unit is None or self._ledger.phase == "optimizer" or not _starts_kernel(operation):
            return
        count = flop_registry.get(operation._overloadpacket)
        flops = 0 if count is None else count(*args, **kwargs, out_val=result)
        seconds = self._speed.seconds(flops, _num_bytes((*args, *kwargs.values(), result)))
        work = unit.forward if self._is_forward else unit.backward
        work.add(self._num_tiles * seconds, self._num_tiles * flops)
        if operation in ATTENTION_KERNELS and self._is_forward:
            unit.of_attention.add(seconds, flops)
            unit.attention.append((self._ledger.moment, _num_bytes((result,))))

    def _run_segment(self, part: Any, features: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # on strips each function is looked at, and these have no rule
            self._enter(self.segments, (features,))
        number = len(self.segments) - 1
        known = self._known[number] if number < len(self._known) else None
        if known is not None and not known.layers and known.like is not None:
            has_gradient = torch.empty(1, requires_grad=True) if known.begin_backward is not None else None
            output = _StandIn.apply(features, known.like, has_gradient)
        else:
            output = self._run(part, features)
        with torch._C.DisableTorchFunction():
            self._leave(output)
        return output

    def _enter(self, units: list[ObservedUnit], inputs: Sequence[Any]) -> None:
        if self._is_forward:
            born = [self._ledger.born(each) for each in inputs if isinstance(each, Tensor)]
            self._now = ObservedUnit(self._ledger.moment, inputs=born)
            units.append(self._now)

    def _enter_layer(self, number: int) -> None:
        if self._is_forward and self._now is not None:
            self._now.layers.append(number)

    def _leave(self, output: Tensor) -> None:
        unit = self._now
        if not self._is_forward or unit is None:
            return
        unit.end, unit.output, self._now = self._ledger.moment, self._ledger.born(output), None
        unit.like = _like(output)
        if output.requires_grad:
            output.register_hook(lambda _: self._begin_backward(unit))

    def _begin_backward(self, unit: ObservedUnit) -> None:
        unit.begin_backward, self._now = self._ledger.moment, unit


class MemoryCurve:
    """The bytes in use at each moment of a step, and its storages by the moment at which they were allocated."""

    def __init__(self, allocations: Sequence[Allocation], end: int) -> None:
        changes = np.zeros(end + 2, np.int64)
        for each in allocations:
            changes[each.born] += each.num_bytes
            if each.died is not None:
                changes[each.died] -= each.num_bytes
        self.in_use = np.cumsum(changes)
        self.storages = {each.born: each for each in allocations}
        self._allocations, self.end = allocations, end

    def peak(self, begin: int, end: int) -> int:
        """The most bytes from one moment to another."""
        return int(self.in_use[begin : end + 1].max())

    def peak_without(self, begin: int, end: int, events: Sequence[tuple[int, int]]) -> int:
        """The same without so many bytes from each of `events` on."""
        curve = self.in_use[begin : end + 1].copy()
        for moment, num_bytes in events:
            curve[max(0, moment - begin) :] -= num_bytes
        return int(curve.max())

    def kept(self, begin: int, end: int, until: int, but: int) -> int:
        """Bytes of storages allocated from `begin` to `end` and in use at `until`, except the one allocated at
        `but`."""
        return sum(
            each.num_bytes
            for each in self._allocations
            if begin < each.born <= end and each.born != but and (each.died is None or each.died > until)
        )
