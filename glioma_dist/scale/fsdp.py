"""FSDP2 through accelerate: which parts of the model are gathered together, and norms of gradients that are spread."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from glioma_dist.distributed.context import DistributedContext
from glioma_dist.model.unet import UNet


def choose_shards(model: UNet, context: DistributedContext) -> None:
    """Have accelerate shard the model by `sharded_units`, where the launch is FSDP2's. Call it last before `prepare`.

    accelerate finds units by the names of their classes, and takes every module of such a class: a block's inner
    convolutions too, where another block is a convolution of the same class. So each unit gets a subclass, which
    changes nothing but the name.
    """
    if not context.accelerator.is_fsdp2:
        return
    subclasses: dict[type[nn.Module], type[nn.Module]] = {}
    for unit in sharded_units(model):
        kind = type(unit)
        if kind not in subclasses:
            subclasses[kind] = type(f"{kind.__name__}Unit{len(subclasses)}", (kind,), {})
        # In place, unlike other changes of class here (`model/modules.py`): a compiled block keeps what it was compiled
        # with, and FSDP2 itself gives each unit another class in place (`fully_shard`).
        unit.__class__ = subclasses[kind]
    names = sorted(subclass.__name__ for subclass in subclasses.values())
    context.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = names


def sharded_units(model: UNet) -> list[nn.Module]:
    """The parts of the model whose weights are gathered when they are needed; what is in none stays gathered.

    The encoder's layers or blocks, or its convolutions where it is a plain chain of them (VGG); the decoder's blocks.
    """
    encoder = model.encoder
    blocks = encoder.blocks() or [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    return [
        unit
        for unit in (*blocks, model.decoder.center, *model.decoder.blocks)
        if next(unit.parameters(), None) is not None
    ]


def clip_gradients(model: nn.Module, context: DistributedContext, greatest: float | None) -> Tensor:
    """Return the norm of all gradients together before clipping, () on their device. If `greatest` is given, the
    gradients are scaled down to this norm. Nothing is read from the device."""
    context.accelerator.unscale_gradients()
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if greatest is not None:
        nn.utils.clip_grads_with_norm_(parameters, greatest, norm)
    return norm
