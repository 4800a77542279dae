"""The optimizers of training, each as fast as the device allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glioma_dist.config import TrainConfig
from glioma_dist.config.recipe import num_moments
from glioma_dist.model.parameter_groups import parameter_groups


def make_optimizer(model: nn.Module, config: TrainConfig, has_loss_scale: bool = False) -> torch.optim.Optimizer:
    """The optimizer of a training of `model`, on the device that its parameters are on. Frozen ones are not in it.

    Adam (Kingma & Ba 2015, arXiv 1412.6980), AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), or SGD.
    has_loss_scale: whether steps that overflow fp16 are skipped.

    On GPUs it is PyTorch's fused kernel, which reads and writes each number once, needs a few launches for all
    parameters, and skips an fp16 step that overflowed without a synchronisation. On CPUs PyTorch chooses. Both have the
    same state, which can be loaded into either.
    """
    groups = parameter_groups(model, config.lr, config.weight_decay, config.encoder_lr_factor)
    # PyTorch's fused SGD allocates its momentum in the first step, also where it skips it, and never fills it then.
    is_unsafe = has_loss_scale and config.optimizer == "sgd" and num_moments(config.optimizer, config.momentum) > 0
    fused = True if _all_on_gpus(groups) and not is_unsafe else None
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(groups, fused=fused)


def make_adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Adam:
    """Adam of all parameters of `model`, for measurements: the optimizer of a training by default."""
    groups = parameter_groups(model, lr)
    return torch.optim.Adam(groups, lr=lr, fused=True if _all_on_gpus(groups) else None)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the next step; each group has its own share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def state_names(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """The names of what the optimizer keeps for each parameter once it has taken a step.

    optimizer: one of this module, also as `accelerate.prepare` returned it.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if isinstance(inner, torch.optim.SGD):
        return frozenset({"momentum_buffer"} if inner.defaults["momentum"] else ())
    return frozenset({"step", "exp_avg", "exp_avg_sq"})


def _all_on_gpus(groups: list[dict[str, Any]]) -> bool:
    parameters = [each for group in groups for each in group["params"]]
    return bool(parameters) and all(each.is_cuda for each in parameters)
