"""The optimizer's step inside the backward pass: each weight moves as soon as its gradient is complete, and the
gradient is freed. The weights of all are never held as gradients at once.

Every weight moves by the same numbers as in a step after the backward pass: in Adam, AdamW and SGD no weight's step
depends on another's. What depends on all gradients together, clipping and the check that all are finite before any
weight moves, is not possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from glioma_dist.config import TrainConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.launcher import alike_on_a_machine
from glioma_dist.errors import InputError

FLAG = "--scale.optimizer-in-backward"


@alike_on_a_machine()
def check_optimizer_in_backward(config: TrainConfig, context: DistributedContext) -> None:
    """Raises InputError if the launch does not allow what `config` asks for."""
    if not config.scale.optimizer_in_backward:
        return
    if context.num_processes > 1:
        raise InputError(
            f"{FLAG}: weights would move before the {context.num_processes} processes have added their gradients; "
            "launch one process, or omit the flag"
        )
    if context.accelerator.mixed_precision == "fp16":
        raise InputError(
            f"{FLAG}: with fp16 a step is skipped after its backward pass where gradients overflow; use bf16, or omit "
            "the flag"
        )


class OptimizerInBackward:
    """Steps `optimizer` for one weight at a time while gradients are computed.

    optimizer: also as `accelerate.prepare` returned it. Its state stays in it, by parameter, as plain steps make it: a
    checkpoint of either can be resumed by the other.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self._norms: list[Tensor] = []

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Within it, a backward pass moves the weights. The learning rates are those of the optimizer's groups."""
        self._norms = []
        hooks = [
            parameter.register_post_accumulate_grad_hook(self._step_of(group))
            for group in self._optimizer.param_groups
            for parameter in group["params"]
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def norm(self) -> Tensor:
        """The norm of all gradients of the last backward pass together, () on their device."""
        return torch.linalg.vector_norm(torch.stack(self._norms))

    def _step_of(self, group: dict[str, Any]) -> Callable[[Tensor], None]:
        def step(parameter: Tensor) -> None:
            self._norms.append(torch.linalg.vector_norm(parameter.grad))
            groups = self._optimizer.param_groups
            self._optimizer.param_groups = [{**group, "params": [parameter]}]
            try:
                self._optimizer.step()
            finally:
                self._optimizer.param_groups = groups
            parameter.grad = None

        return step
