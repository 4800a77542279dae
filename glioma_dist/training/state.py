"""What a training run remembers: where it is, its best score, the optimizer's tensors and fp16's gradient scaler.

There is no random state to save: everything random is a function of the seed and the place in the order.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from glioma_dist.config import TrainConfig
from glioma_dist.errors import InputError, one_line, shown
from glioma_dist.model.checkpoint import MAX_STEP, Checkpoint
from glioma_dist.model.checkpoint_writer import Stages, Writer, checkpoint_stages
from glioma_dist.model.manifest import OPTIMIZER, STATE
from glioma_dist.model.tensor_files import DamagedError
from glioma_dist.scale.optimizer import state_names
from glioma_dist.training.metrics_file import is_row
from glioma_dist.training.snapshot import SnapshotMemory, check_finite, is_in_parts, trained_names

Scaler = dict[str, float | int]
"""The state of fp16's gradient scaler by its own names, as torch.amp.GradScaler.state_dict() gives it."""


@dataclass(frozen=True)
class TrainState:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps taken."""
    best_loss: float = math.inf
    best_dice: float = 0.0
    evaluations_since_best: int = 0
    validated_step: int = 0
    """The last step after which the run was validated."""


def state_stages(
    folder: Path,
    config: TrainConfig,
    state: TrainState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    metadata: dict,
    writer: Writer,
    keep: int,
    scaler: Scaler | None,
    *,
    memory: SnapshotMemory,
    average: dict[str, Tensor] | None = None,
    also: Path | None = None,
) -> Stages:
    """The stages of a checkpoint of the unwrapped `model`; with the optimizer where training is to resume from it, and
    with the moving average of the weights where there is one.

    All processes take them together. Where each has a part of every tensor, each writes its own. The last `keep`
    checkpoints stay, and this one in `also`. The first stage copies the tensors to `memory`; after it, training may
    continue. Stages raise InputError where one process cannot write, and the first one NonFiniteError where a weight or
    a value of the optimizer is not finite: such a checkpoint could not be resumed from. The ones before then stay.
    """
    where = {key: value for key, value in dataclasses.asdict(state).items() if value != math.inf}
    metadata = {**metadata, "position": where, **({"scaler": _plain_numbers(scaler)} if scaler else {})}
    num_parts = writer.count if is_in_parts(model) else 1
    take = partial(memory.take, model, optimizer, state.step, writer, average)
    check = partial(check_finite, step=state.step)
    return checkpoint_stages(folder, config, metadata, take, writer, num_parts, keep, check, also)


def _plain_numbers(scaler: dict[str, Any]) -> Scaler:
    """`scaler` as numbers that JSON brings back exactly. Raises TypeError for anything else: a fault of the caller."""
    found = {name: value.item() if isinstance(value, Tensor) else value for name, value in scaler.items()}
    if not all(map(_is_number, found.values())):
        raise TypeError(f"a gradient scaler's state has plain numbers, not {scaler}")
    return found


def _is_number(value: object) -> bool:
    return (type(value) is int and abs(value) < 2**63) or (type(value) is float and math.isfinite(value))


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> TrainState:
    """Put a checkpoint's weights back, in place, before `model` is wrapped; returns where the run was. The weights are
    those that the optimizer left, not their moving average.

    Raises InputError where they are damaged or do not fit, or where the position is none.
    """
    state = read_train_state(checkpoint)
    checkpoint.load_into(model, checkpoint.config.model.encoder, raw=True)
    return state


def read_train_state(checkpoint: Checkpoint) -> TrainState:
    """Where the run was. Raises DamagedError naming the value that cannot be used."""
    path, values = checkpoint.folder / STATE, checkpoint.metadata.get("position")
    kinds = {"step": int, "best_loss": float, "best_dice": float, "evaluations_since_best": int, "validated_step": int}
    if not isinstance(values, dict) or "step" not in values:
        raise DamagedError(path, f"has no position to resume from ({shown(values)})")
    for name, value in values.items():
        if name not in kinds:
            raise DamagedError(path, f"its position has {shown(name)}, which this version does not know")
        usable = type(value) is int and 0 <= value <= MAX_STEP if kinds[name] is int else _is_number(value)
        if not usable:
            raise DamagedError(path, f"its position's {name} is {shown(value)}")
    return TrainState(**{name: kinds[name](value) for name, value in values.items()})


def read_scaler(checkpoint: Checkpoint) -> Scaler | None:
    """The state of fp16's gradient scaler; None where there is none. Raises DamagedError for anything else."""
    scaler = checkpoint.metadata.get("scaler")
    if scaler is None or (isinstance(scaler, dict) and all(map(_is_number, scaler.values()))):
        return scaler
    raise DamagedError(checkpoint.folder / STATE, f"its scaler is {shown(scaler)}, not a set of numbers")


def read_unwritten_rows(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Rows of metrics that the run could not write before it saved this. Raises DamagedError for anything else."""
    rows = checkpoint.metadata.get("unwritten_rows", [])
    if not isinstance(rows, list) or not all(map(is_row, rows)):
        raise DamagedError(checkpoint.folder / STATE, f"its unwritten_rows are {shown(rows)}")
    return rows


def load_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's optimizer state back, in place, once the model is as it is trained: full or sharded.

    Raises InputError where it is damaged, or is of another network or another optimizer.
    """
    parameters = dict(model.named_parameters())
    numbers = {name: number for number, name in enumerate(trained_names(model, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    where = checkpoint.folder / OPTIMIZER
    for key, tensor in checkpoint.tensors(OPTIMIZER).items():
        name, _, what = key.rpartition("/")
        if name not in numbers:
            fault = "this run does not train" if name in parameters else "this model has not"
            raise InputError(f"{where}: holds {shown(name)}, which {fault}; give another --out")
        if (tensor.ndim and tensor.shape != parameters[name].shape) or not tensor.is_floating_point():
            raise InputError(
                f"{where}: {one_line(key, 100)} is {tensor.dtype} {tuple(tensor.shape)}, which does not fit the "
                f"model's {tuple(parameters[name].shape)}; give another --out"
            )
        state.setdefault(numbers[name], {})[what] = _laid_out_like(parameters[name], tensor)
    _check_names({frozenset(values) for values in state.values()}, state_names(optimizer), where)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _check_names(found: set[frozenset[str]], expected: frozenset[str], where: Path) -> None:
    """Raises InputError unless each parameter with a state has the values that the optimizer keeps. found: the sets of
    names that parameters have."""
    if len(found) > 1:
        raise InputError(f"{where}: lacks some of its parameters' values; give another --out")
    for names in found - {expected}:
        told, wanted = (one_line(", ".join(sorted(each)), 100) or "nothing" for each in (names, expected))
        raise InputError(
            f"{where}: is of another optimizer: it holds {told} for each parameter, and this one keeps {wanted}; give "
            "another --out"
        )


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` with the strides of `parameter`, of which each process keeps the part that it has. A file has no
    strides, and PyTorch's fused optimizers refuse state that lies otherwise than its parameter, as in channels_last."""
    if tensor.ndim == 0:
        return tensor
    if not isinstance(parameter, DTensor):
        return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
