"""The page of the Python API for the documentation site: every public name, whose docstring mkdocstrings reads."""

from __future__ import annotations

import glioma_dist

GROUPS = {
    "Train, evaluate, predict, follow growth, report": ("train", "evaluate", "predict", "growth", "report_prediction"),
    "Settings": (
        *("TrainConfig", "DataConfig", "ModelConfig", "ScaleConfig", "EvaluateConfig", "PredictConfig"),
        *("InferenceScaleConfig", "GrowthConfig", "ReportConfig", "Size"),
    ),
    "Results": ("TrainResult", "EvaluationResult", "PredictionResult", "GrowthResult", "PredictionReport"),
    "Models": ("build_model", "load_model", "normalise", "PretrainedUNet", "Encoder"),
    "Data": ("ShardReader", "ShardWriter", "Sample", "DeterministicSampler", "training_batches", "Batch"),
    "Memory": (
        *("estimate_step_memory", "ModuleStepMemory", "StepMemory", "checkpoint_activations"),
        *("spatial_parallel", "SpatialGroup"),
    ),
    "Errors": ("RunError", "InputError"),
}
"""Heading -> public names, in the order of the page."""


def api_page() -> str:
    """Return the page in Markdown. mkdocstrings replaces each line that begins with `:::` by the name's docstring."""
    lines = ["# Python API", "", "[Use it from Python](../api.md) has examples of these names.", ""]
    for title, names in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: glioma_dist.{glioma_dist._HOMES[name]}.{name}", ""]
    return "\n".join(lines)
