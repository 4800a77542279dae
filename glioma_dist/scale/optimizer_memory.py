"""What an optimizer keeps, for the memory estimator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from glioma_dist.scale.step_memory import Part


class Ledger(Protocol):
    """Writes down the memory of a step."""

    def name(self, part: Part, tensors: Iterable[Tensor]) -> None: ...

    def note(self, part: Part, num_bytes: int) -> None: ...


def make_optimizer_state(model: nn.Module, num_moments: int, ledger: Ledger) -> torch.optim.Optimizer:
    """Return an optimizer of `model` that has taken its first step, in which it allocates what it keeps for each
    weight, and write this down.

    num_moments: numbers that it keeps for each weight: 2 (Adam, and AdamW, which takes as much), 1 (SGD with momentum),
    or 0.

    It processes one parameter after another and frees its temporary memory for each. So it runs on one parameter of
    each size only, which shows the peak, and what belongs to all other parameters is added.
    """
    if num_moments == 2:
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters())
    else:
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9 * num_moments)
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
    return optimizer
