"""What a training run remembers: where it is, its best score, and the optimizer's tensors.

There is no random state to save: everything random is a function of the seed and the place in the order.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from glioma_dist.config import TrainConfig
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import ALONE, MODEL, OPTIMIZER, Checkpoint, Writer, write_checkpoint


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps taken."""
    best_loss: float = math.inf
    best_dice: float = 0.0
    evaluations_since_best: int = 0
    validated_step: int = 0
    """The last step after which the run was validated."""


def save_state(
    folder: Path,
    config: TrainConfig,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    facts: dict,
    writer: Writer = ALONE,
) -> None:
    """Write a checkpoint of the unwrapped `model`; with the optimizer where training is to go on from it.

    All processes call it and wait for it. Where each has a part of every tensor, each writes its own.
    """
    where = {key: value for key, value in dataclasses.asdict(position).items() if value != math.inf}
    facts = {**facts, "position": where}
    weights, moments = model.state_dict(), None if optimizer is None else _optimizer_tensors(model, optimizer)
    if any(isinstance(tensor, DTensor) for tensor in weights.values()):
        weights, moments = _of_this_process(weights, writer), moments and _of_this_process(moments, writer)
        write_checkpoint(folder, config, facts, weights, moments, writer)
    else:
        if writer.number == 0:
            write_checkpoint(folder, config, facts, _plain(weights), moments and _plain(moments))
        writer.wait()


def _of_this_process(tensors: dict[str, Tensor], writer: Writer) -> dict[str, Tensor]:
    """Its rows of tensors that are split; those that all have, the first writes."""
    return _plain(
        {
            name: tensor.to_local() if isinstance(tensor, DTensor) else tensor
            for name, tensor in tensors.items()
            if isinstance(tensor, DTensor) or writer.number == 0
        }
    )


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> Position:
    """Put a checkpoint's weights back, in place, before `model` is wrapped; returns where the run was."""
    model.load_state_dict(checkpoint.tensors(MODEL))
    return Position(**checkpoint.facts["position"])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the parameters' names, as "<parameter>/<what>"."""
    names = [name for name, _ in model.named_parameters()]
    return {
        f"{names[number]}/{what}": tensor
        for number, values in optimizer.state_dict()["state"].items()
        for what, tensor in values.items()
    }


def load_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's optimizer state back, in place, once the model is as it is trained: whole, or in parts."""
    parameters = dict(model.named_parameters())
    numbers = {name: number for number, name in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.tensors(OPTIMIZER).items():
        name, _, what = key.rpartition("/")
        if name not in numbers:
            raise InputError(f"{checkpoint.folder / OPTIMIZER}: holds {name}, which this model has not")
        state.setdefault(numbers[name], {})[what] = _spread_like(parameters[name], tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _spread_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, of which each process keeps the part that it has of `parameter`."""
    if not isinstance(parameter, DTensor) or tensor.ndim == 0:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
