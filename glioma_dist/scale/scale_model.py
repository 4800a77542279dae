"""One call that makes a model cost what its settings ask for."""

from __future__ import annotations

import torch

from glioma_dist.config import ScaleConfig
from glioma_dist.model.unet import UNet
from glioma_dist.scale.planner import Recompute
from glioma_dist.scale.recompute import NUM_BANDED_STAGES, recompute
from glioma_dist.scale.row_layers import split_rows
from glioma_dist.scale.rows import Rows


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
        # A band's work is a new function each time, which would be translated each time.
        for stage in model.encoder.segformer.stages[NUM_BANDED_STAGES if kind == "all" else 0 :]:
            for layer in stage.blocks:
                layer.compile()
