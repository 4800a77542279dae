"""Copies of weights, optimizer and moving average in host memory, from which checkpoints are written while training
continues."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from glioma_dist.errors import NonFiniteError
from glioma_dist.model.checkpoint_writer import Writer
from glioma_dist.model.manifest import EMA, MODEL, OPTIMIZER
from glioma_dist.model.tensor_files import FlatTensors
from glioma_dist.training.in_thread import InThread


class SnapshotMemory:
    """The memory that snapshots are copied to, page-locked for a GPU. It is used again by every snapshot: no write may
    still need the one before, unless that is of the same step.

    Without a GPU, a thread copies while the next forward and backward pass are computed, which only read weights,
    optimizer and moving average. Whatever changes these calls `wait` before.
    """

    def __init__(self) -> None:
        self._room: dict[str, FlatTensors] = {}
        self._steps: dict[str, int] = {}
        """Step whose tensors lie there: `best` and `last` of one step share the copies of weights and average."""
        self._reserving: InThread[dict[str, FlatTensors]] | None = None
        self._copying: dict[str, InThread[None]] = {}

    def reserve(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        writer: Writer,
        average: dict[str, Tensor] | None = None,
    ) -> None:
        """Have a thread allocate the memory, so that the first `take` need not wait for the system to give it.

        It does nothing where a snapshot was taken already, which may be needed.
        """
        in_parts = is_in_parts(model)
        if not self._room and (in_parts or writer.number == 0):
            tensors = {MODEL: model.state_dict(), OPTIMIZER: optimizer_tensors(model, optimizer)}
            if average is not None:
                tensors[EMA] = average
            wanted = {file: _own(each, writer, in_parts) for file, each in tensors.items()}
            make = partial(_make_rooms, wanted)
            self._reserving = InThread(make, "memory for checkpoints")

    def wait(self) -> None:
        """Until all is copied that `take` was given. From now on the tensors may change."""
        while self._copying:
            _, copying = self._copying.popitem()
            copying.result()

    def close(self) -> None:
        """Wait for the threads of `reserve` and `take`."""
        for thread in (self._reserving, *self._copying.values()):
            if thread is not None:
                thread.wait()

    def take(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        step: int,
        writer: Writer,
        average: dict[str, Tensor] | None = None,
    ) -> dict[str, FlatTensors]:
        """Copy the tensors of the unwrapped `model`, and of the optimizer and the moving average where they are given,
        that `writer` writes. Parameters, the optimizer's state and the average must not change before `wait`.

        Returns the copies by MODEL, OPTIMIZER and EMA; none where another process writes all.
        """
        in_parts = is_in_parts(model)
        if not in_parts and writer.number != 0:
            return {}
        if self._reserving is not None:
            reserving, self._reserving = self._reserving, None
            self._room = reserving.result()
        wanted = {MODEL: model.state_dict()} | ({} if average is None else {EMA: average})
        if optimizer is not None:
            wanted[OPTIMIZER] = optimizer_tensors(model, optimizer)
        changed_by_a_forward_pass = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        in_thread: dict[str, dict[str, Tensor]] = {}
        for file, whole in wanted.items():
            if file != OPTIMIZER and self._steps.get(file) == step:
                continue
            tensors = _own(whole, writer, in_parts)
            self._make_room(file, tensors)
            now = tensors if _is_on_gpu(tensors) else {}
            if file == MODEL and not now:
                now = {name: each for name, each in tensors.items() if name in changed_by_a_forward_pass}
            self._room[file].copy_(now)
            later = {name: each for name, each in tensors.items() if name not in now}
            if later:
                in_thread[file] = later
            self._steps[file] = step
        self._copy_in_thread(in_thread)
        return {file: self._room[file] for file in wanted}

    def _make_room(self, file: str, tensors: dict[str, Tensor]) -> None:
        if file in self._copying:  # of a checkpoint that was begun and not written
            self._copying.pop(file).result()
        self._steps.pop(file, None)
        if file not in self._room or not self._room[file].has_room_for(tensors):
            self._room.pop(file, None)  # first, or there would be room for both
            self._room[file] = _room_for(tensors)

    def _copy_in_thread(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        rooms = {file: self._room[file] for file in tensors}
        if not rooms:
            return

        def copy() -> None:
            for file, room in rooms.items():
                room.copy_(tensors[file])

        copying = InThread(copy, "copies for checkpoints")
        for file, room in rooms.items():
            room.filled_by(copying.result)
            self._copying[file] = copying


def _make_rooms(wanted: dict[str, dict[str, Tensor]]) -> dict[str, FlatTensors]:
    return {file: _room_for(tensors).touch() for file, tensors in wanted.items()}


def _room_for(tensors: dict[str, Tensor]) -> FlatTensors:
    return FlatTensors(tensors, page_locked=_is_on_gpu(tensors))


def _is_on_gpu(tensors: dict[str, Tensor]) -> bool:
    return any(tensor.device.type == "cuda" for tensor in tensors.values())


def is_in_parts(model: nn.Module) -> bool:
    """Whether each process has a part of every weight (FSDP2)."""
    return any(isinstance(each, DTensor) for each in model.parameters())


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the parameters' names, as "<parameter>/<what>"."""
    names = trained_names(model, optimizer)
    return {
        f"{names[number]}/{what}": tensor
        for number, values in optimizer.state_dict()["state"].items()
        for what, tensor in values.items()
    }


def trained_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the parameters that the optimizer changes, in the order of its groups, which numbers its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _own(tensors: dict[str, Tensor], writer: Writer, in_parts: bool) -> dict[str, Tensor]:
    """Its rows of tensors that are split; those that all have, the first writes."""
    return {
        name: tensor.to_local() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors.items()
        if not in_parts or isinstance(tensor, DTensor) or writer.number == 0
    }


def check_finite(tensors: FlatTensors, step: int) -> None:
    """Raises NonFiniteError where a value is not finite: a run could not resume from a checkpoint of them."""
    broken = tensors.not_finite()
    if broken:
        raise NonFiniteError(
            f"step {step}: {len(broken)} tensors of the model or the optimizer are not finite, the first is "
            f"{broken[0]}; no checkpoint of them is written; give a smaller --lr, or --clip-norm, in another --out"
        )
