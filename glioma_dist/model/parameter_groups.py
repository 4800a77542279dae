"""Which parameters of a network have weight decay, and which learning rate: the optimizer's parameter groups."""

from __future__ import annotations

from typing import Any

from torch import nn

NOT_DECAYED = ("pos_embed", "token", "rel_pos", "position", "cpb_mlp", "logit_scale", "temperature")
"""Parts of names of embeddings of positions, of tokens and of scales, which may have several dimensions. timm's models
list them in `no_weight_decay()`, which their feature networks do not have."""

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
"""A layer norm of several dimensions has weights of several dimensions."""


def decayed_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that weight decay is for: the weights of convolutions, linear layers and
    attention.

    Not biases, norms, scales of channels and everything else of one dimension, and not what `NOT_DECAYED` names, as in
    timm and in the training of ConvNeXt, Swin and MiT.
    """
    norms = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and name not in norms
        and not name.endswith("bias")
        and not any(part in name for part in NOT_DECAYED)
    }


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.0, encoder_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Return the groups that an optimizer of torch takes, with the parameters that are trained, in their order.

    Each has its `lr`, its `weight_decay`, and `lr_factor`, its share of the learning rate. Parameters of the same
    settings are in one group: by default all are.
    """
    decayed = decayed_names(model) if weight_decay else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = encoder_lr_factor if name.startswith("encoder.") else 1.0
            groups.setdefault((factor, weight_decay if name in decayed else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * factor, "weight_decay": decay, "lr_factor": factor}
        for (factor, decay), parameters in groups.items()
    ]
