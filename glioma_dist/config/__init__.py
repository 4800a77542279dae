"""The settings of a run: frozen dataclasses, one file per concern.

All settings are checked before any data is read or any GPU is used. Settings that change results are in `DataConfig`,
`ModelConfig` and the upper part of `TrainConfig`. Settings that change only the cost are in `ScaleConfig` or in
`COST_FIELDS`; they may differ when a run is resumed.
"""

from glioma_dist.config.data import ARTICLE_SMALL, DataConfig
from glioma_dist.config.inference import EvaluateConfig, PredictConfig
from glioma_dist.config.model import ModelConfig
from glioma_dist.config.report import ReportConfig
from glioma_dist.config.scale import (
    SPATIAL_LAYERS_ENCODERS,
    InferenceScaleConfig,
    ScaleConfig,
    check_spatial_parallel,
)
from glioma_dist.config.train import COST_FIELDS, TrainConfig

__all__ = [
    "ARTICLE_SMALL",
    "COST_FIELDS",
    "SPATIAL_LAYERS_ENCODERS",
    "DataConfig",
    "EvaluateConfig",
    "InferenceScaleConfig",
    "ModelConfig",
    "PredictConfig",
    "ReportConfig",
    "ScaleConfig",
    "TrainConfig",
    "check_spatial_parallel",
]
