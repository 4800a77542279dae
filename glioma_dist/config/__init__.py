"""The settings of a run: frozen dataclasses, one file per concern.

Everything here is checked before any data is read or any GPU is touched. Settings that decide numbers live in
`DataConfig`, `ModelConfig` and the upper part of `TrainConfig`; those that decide cost only live in `ScaleConfig` or
are listed in `COST_FIELDS`, and a run may be resumed with others.
"""

from glioma_dist.config.data import ARTICLE_SMALL, DataConfig
from glioma_dist.config.inference import EvaluateConfig, PredictConfig
from glioma_dist.config.model import ModelConfig
from glioma_dist.config.scale import (
    SPATIAL_PARALLEL_ENCODERS,
    InferenceScaleConfig,
    ScaleConfig,
    check_spatial_parallel,
)
from glioma_dist.config.train import COST_FIELDS, TrainConfig

__all__ = [
    "ARTICLE_SMALL",
    "COST_FIELDS",
    "SPATIAL_PARALLEL_ENCODERS",
    "DataConfig",
    "EvaluateConfig",
    "InferenceScaleConfig",
    "ModelConfig",
    "PredictConfig",
    "ScaleConfig",
    "TrainConfig",
    "check_spatial_parallel",
]
