"""One call that makes a model cost what its settings ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from glioma_dist.config import ScaleConfig, TrainConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.errors import InputError
from glioma_dist.model.unet import UNet
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.checkpoint_plan import CheckpointPlan
from glioma_dist.scale.planner import Level
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially
from glioma_dist.scale.tile_size import tile_size

GRAPHS_PER_KIND = 4
"""Graphs of a kind of layer: in training and in evaluation, each for the first size of images and for all others."""


def scale_model(
    model: UNet,
    scale: ScaleConfig,
    level: Level | CheckpointPlan,
    group: SpatialGroup,
    device: torch.device | None = None,
    shards: bool = False,
) -> None:
    """Change, in place, how `model` computes and what it keeps, but not its results.

    level: `scale.activation_checkpointing` with auto resolved for this device (`planner.resolve`), or the plan for
    `scale.memory_budget` (`memory_budget.choose_plan`). group: the processes
    that share each image. device: the device that will compute, needed if `scale.tile_elements` is a number. shards:
    whether FSDP2 will shard the weights.
    """
    size = None if scale.tile_elements == "auto" else tile_size(scale.tile_elements, device or "cpu")
    checkpoint_activations(model, level, size)
    split_spatially(model, group, size)
    if scale.channels_last not in ("auto", "on", "off"):
        raise InputError(f"channels_last {scale.channels_last}: give auto, on or off")
    # Training has already resolved auto (`resolve_layout`); a model without a device is on the CPU.
    if scale.channels_last == "on":
        if not shards:  # FSDP2 takes contiguous weights only; maps keep their layout through a layer with such weights
            model.to(memory_format=torch.channels_last)
        model.encoder.memory_format = torch.channels_last
    if scale.compile:
        compile_blocks(compilable(model))


def resolve_layout(config: TrainConfig, context: DistributedContext) -> ScaleConfig:
    """The scale settings of a training, with `channels_last` auto resolved to on or off."""
    kind, precision = context.device.type, context.accelerator.mixed_precision
    is_on = config.scale.uses_channels_last(kind, precision, config.model.norm)
    return replace(config.scale, channels_last="on" if is_on else "off")


def compile_blocks(blocks: Sequence[nn.Module], **settings: Any) -> None:
    """Compile blocks with torch.compile at their first call. Blocks of one kind share a graph for training and one for
    evaluation. settings: of torch.compile.

    PyTorch stops compiling after `recompile_limit` graphs of one piece of code, by default 8. All blocks of a class
    share their code, and some encoders have more than 8 kinds of one class.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS_PER_KIND * len(blocks))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    for block in blocks:
        # timm/NAME: the encoder calls the block, and the method of its class computes it.
        if "forward" in vars(block):
            block.compute = torch.compile(type(block).forward, **settings)
        else:
            block.compile(**settings)


def compilable(model: UNet) -> list[nn.Module]:
    """The encoder's blocks without those in which a layer is computed in tiles: the function of a tile is new each
    time, so it would be compiled each time. Those that go in tiles as a whole, if images are large, leave it alone."""
    for layer in model.encoder.sparing_layers():
        if layer.run_tiles is not None:
            layer.run_tiles = torch.compiler.disable(layer.run_tiles)
    tiled = {layer for layer in model.encoder.tileable_layers() if layer.run_tiles is not None}
    return [block for block in model.encoder.blocks() if tiled.isdisjoint(block.modules())]
