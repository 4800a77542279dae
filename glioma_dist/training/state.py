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

from glioma_dist.config import TrainConfig
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import MODEL, OPTIMIZER, Checkpoint, write_checkpoint


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps taken."""
    best_loss: float = math.inf
    best_dice: float = 0.0
    evaluations_since_best: int = 0


def save_state(
    folder: Path,
    config: TrainConfig,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    facts: dict,
) -> None:
    """Write a checkpoint of the unwrapped `model`; with the optimizer where training is to go on from it."""
    where = {key: value for key, value in dataclasses.asdict(position).items() if value != math.inf}
    tensors = None if optimizer is None else _optimizer_tensors(model, optimizer)
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    write_checkpoint(folder, config, {**facts, "position": where}, weights, tensors)


def load_state(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Put a checkpoint's weights and optimizer state back, in place; returns where the run was."""
    model.load_state_dict(checkpoint.tensors(MODEL))
    _load_optimizer(checkpoint, model, optimizer)
    return Position(**checkpoint.facts["position"])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the parameters' names, as "<parameter>/<what>"."""
    names = [name for name, _ in model.named_parameters()]
    return {
        f"{names[number]}/{what}": tensor.detach().contiguous().cpu()
        for number, values in optimizer.state_dict()["state"].items()
        for what, tensor in values.items()
    }


def _load_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    numbers = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.tensors(OPTIMIZER).items():
        name, _, what = key.rpartition("/")
        if name not in numbers:
            raise InputError(f"{checkpoint.folder / OPTIMIZER}: holds {name}, which this model has not")
        state.setdefault(numbers[name], {})[what] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
