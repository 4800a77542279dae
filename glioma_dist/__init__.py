"""Train U-Nets that segment cells in phase-contrast images, and use them.

    from pathlib import Path
    import glioma_dist as gd

    shards = "runs/demo/shards/glioma_c6"  # `make demo` draws them
    data = gd.DataConfig(train=(f"{shards}/train",), val=f"{shards}/val", size=gd.Size(256, 256))
    model = gd.ModelConfig(encoder="mit_b0")
    run = gd.train(gd.TrainConfig(data, model, lr=1e-3, max_steps=64, eval_every=32, out=Path("runs/first")))
    scores = gd.evaluate(gd.EvaluateConfig(run.best, f"{shards}/test"))
    print(f"mean Dice {scores.mean_dice:.3f} of {len(scores.images)} images")
    masks = gd.predict(gd.PredictConfig(run.best, images="plates/*.tif", out=Path("masks")))
    print([(each.image.name, each.confluence) for each in masks.images])

train, evaluate, predict and growth take a config, compute in this process, and return a result. They start no
processes: to use several GPUs, start the script with `accelerate launch`. What the user gave and cannot be used raises
InputError. docs/api.md has an example of each name.

    run it     train, evaluate, predict, growth, report_prediction
    settings   TrainConfig(DataConfig, ModelConfig, ScaleConfig), EvaluateConfig, PredictConfig, GrowthConfig,
               ReportConfig, Size
    results    TrainResult, EvaluationResult, PredictionResult, GrowthResult, PredictionReport
    models     build_model, load_model, normalise, PretrainedUNet, Encoder
    data       ShardReader, ShardWriter, Sample, DeterministicSampler, training_batches, Batch
    memory     estimate_step_memory, ModuleStepMemory, StepMemory, checkpoint_activations
    strips     spatial_parallel, SpatialGroup
    errors     RunError, InputError

Names are imported when they are first used: `import glioma_dist` imports no large library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
"""The one place of the version: pyproject.toml reads it here."""

_HOMES = {
    "train": "training.loop",
    "evaluate": "evaluation.protocol",
    "predict": "inference.predict",
    "growth": "growth_curves.run",
    "report_prediction": "report.prediction_page",
    "TrainConfig": "config",
    "DataConfig": "config",
    "ModelConfig": "config",
    "ScaleConfig": "config",
    "EvaluateConfig": "config",
    "PredictConfig": "config",
    "ReportConfig": "config",
    "InferenceScaleConfig": "config",
    "GrowthConfig": "config.growth",
    "Size": "size",
    "TrainResult": "training.result",
    "EvaluationResult": "evaluation.protocol",
    "PredictionResult": "inference.results",
    "GrowthResult": "growth_curves.result",
    "PredictionReport": "report.prediction_page",
    "build_model": "model.unet",
    "load_model": "model.unet",
    "normalise": "model.unet",
    "PretrainedUNet": "model.hub",
    "Encoder": "model.encoders.contract",
    "ShardReader": "data.shards.reader",
    "ShardWriter": "data.shards.reader",
    "Sample": "data.sample",
    "DeterministicSampler": "data.sampler",
    "training_batches": "data.loader",
    "Batch": "data.loader",
    "checkpoint_activations": "scale.activation_checkpointing",
    "spatial_parallel": "scale.strips.parallel",
    "SpatialGroup": "scale.spatial_group",
    "estimate_step_memory": "scale.module_memory",
    "StepMemory": "scale.step_memory",
    "ModuleStepMemory": "scale.step_memory",
    "InputError": "errors",
    "RunError": "errors",
}
"""Public name -> the module of this package that has it."""

__all__ = [
    "Batch",
    "DataConfig",
    "DeterministicSampler",
    "Encoder",
    "EvaluateConfig",
    "EvaluationResult",
    "GrowthConfig",
    "GrowthResult",
    "InferenceScaleConfig",
    "InputError",
    "ModelConfig",
    "ModuleStepMemory",
    "PredictConfig",
    "PredictionReport",
    "PredictionResult",
    "PretrainedUNet",
    "ReportConfig",
    "RunError",
    "Sample",
    "ScaleConfig",
    "ShardReader",
    "ShardWriter",
    "Size",
    "SpatialGroup",
    "StepMemory",
    "TrainConfig",
    "TrainResult",
    "__version__",
    "build_model",
    "checkpoint_activations",
    "estimate_step_memory",
    "evaluate",
    "growth",
    "load_model",
    "normalise",
    "predict",
    "report_prediction",
    "spatial_parallel",
    "train",
    "training_batches",
]

if TYPE_CHECKING:
    from glioma_dist.config import (
        DataConfig,
        EvaluateConfig,
        InferenceScaleConfig,
        ModelConfig,
        PredictConfig,
        ReportConfig,
        ScaleConfig,
        TrainConfig,
    )
    from glioma_dist.config.growth import GrowthConfig
    from glioma_dist.data.loader import Batch, training_batches
    from glioma_dist.data.sample import Sample
    from glioma_dist.data.sampler import DeterministicSampler
    from glioma_dist.data.shards.reader import ShardReader, ShardWriter
    from glioma_dist.errors import InputError, RunError
    from glioma_dist.evaluation.protocol import EvaluationResult, evaluate
    from glioma_dist.growth_curves.result import GrowthResult
    from glioma_dist.growth_curves.run import growth
    from glioma_dist.inference.predict import predict
    from glioma_dist.inference.results import PredictionResult
    from glioma_dist.model.encoders.contract import Encoder
    from glioma_dist.model.hub import PretrainedUNet
    from glioma_dist.model.unet import build_model, load_model, normalise
    from glioma_dist.report.prediction_page import PredictionReport, report_prediction
    from glioma_dist.scale.activation_checkpointing import checkpoint_activations
    from glioma_dist.scale.module_memory import estimate_step_memory
    from glioma_dist.scale.spatial_group import SpatialGroup
    from glioma_dist.scale.step_memory import ModuleStepMemory, StepMemory
    from glioma_dist.scale.strips.parallel import spatial_parallel
    from glioma_dist.size import Size
    from glioma_dist.training.loop import train
    from glioma_dist.training.result import TrainResult
else:  # a type checker would take every name for one that is there

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
