"""FSDP2 through accelerate: which parts of the model are gathered together, and norms of gradients that are spread."""

from __future__ import annotations

from torch import nn
from torch.distributed.tensor import DTensor
from transformers.models.segformer.modeling_segformer import SegformerLayer

from glioma_dist.model.decoder import DecoderBlock
from glioma_dist.runtime import Runtime


def choose_shards(model: nn.Module, runtime: Runtime) -> None:
    """Have accelerate wrap the model by SegFormer layer and decoder block, where the launch is FSDP2's.

    A file of settings cannot name the classes: recomputation gives some of them others.
    """
    if runtime.accelerator.is_fsdp2:
        classes = {type(unit).__name__ for unit in sharded_units(model)}
        runtime.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(classes)


def sharded_units(model: nn.Module) -> list[nn.Module]:
    """The parts of the model whose weights are gathered when they are needed; what is in none stays gathered."""
    return [part for part in model.modules() if isinstance(part, SegformerLayer | DecoderBlock)]


def clip_gradients(model: nn.Module, runtime: Runtime, greatest: float | None) -> float:
    """Norm of all gradients together, as they were; they are scaled down to the norm `greatest` where given."""
    runtime.accelerator.unscale_gradients()
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if greatest is not None:
        nn.utils.clip_grads_with_norm_(parameters, greatest, norm)
    return float(norm)
