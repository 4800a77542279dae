"""One call that makes a model cost what its settings ask for."""

from __future__ import annotations

import torch
from torch import nn

from glioma_dist.config import ScaleConfig
from glioma_dist.model.encoders.mit import MitEncoder
from glioma_dist.model.unet import UNet
from glioma_dist.scale.activation_checkpointing import NUM_BANDED_STAGES, recompute
from glioma_dist.scale.planner import Recompute
from glioma_dist.scale.spatial_group import Rows
from glioma_dist.scale.spatial_layers import split_rows


def scale_model(model: UNet, scale: ScaleConfig, kind: Recompute, rows: Rows) -> None:
    """Change, in place, how `model` computes and what it keeps; not what it gives.

    kind: the recomputation that `scale.recompute` comes down to on this device (`planner.resolve`).
    rows: the processes that share each image.
    """
    recompute(model, kind)
    split_rows(model, rows)
    if scale.channels_last:
        model.to(memory_format=torch.channels_last)
        model.encoder.memory_format = torch.channels_last
    if scale.compile:
        for block in _repeated(model, kind):
            block.compile()


def _repeated(model: UNet, kind: Recompute) -> list[nn.Module]:
    """The encoder's layers or blocks."""
    if not isinstance(model.encoder, MitEncoder):
        return model.encoder.blocks()
    # A band's work is a new function each time, which would be translated each time.
    stages = model.encoder.segformer.stages[NUM_BANDED_STAGES if kind == "all" else 0 :]
    return [layer for stage in stages for layer in stage.blocks]
