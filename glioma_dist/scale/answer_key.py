"""What an earlier count depends on, so that it is taken again only for the same step and the same code."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version

import torch

from glioma_dist.config import ModelConfig
from glioma_dist.fingerprint import code_fingerprint
from glioma_dist.model.unet import UNet
from glioma_dist.scale import answers
from glioma_dist.scale.checkpoint_plan import CheckpointPlan
from glioma_dist.scale.step import Step


def answer_key(step: Step, level: str | CheckpointPlan, size: str) -> str | None:
    """All that an answer depends on; None where that cannot be told, so that the answer is not kept."""
    code = _code(step.model)
    if code is None:
        return None
    metadata = (
        step.model.encoder,
        step.model.norm,
        step.model.encoder_norm,
        step.model.decoder_channels,
        step.model.num_mask_channels,
        step.model.targets,
        size,
        step.batch_size,
        step.bf16,
        step.loss_name,
        step.freeze_encoder,
        step.optimizer_in_backward,
        level,
        step.spatial_parallel,
        step.tile_size,
        torch.__version__,
        version("timm"),
        code,
    )
    return " ".join(map(str, metadata))


@lru_cache
def _code(config: ModelConfig) -> str | None:
    """Of the code that decides what a step of the model holds."""
    if answers.is_own_encoder(config.encoder):
        return code_fingerprint([])
    try:
        with torch.device("meta"):
            model = UNet(config)
    except Exception:  # an encoder of others that cannot be made without its numbers
        return None
    return code_fingerprint(type(module) for module in model.modules())
