"""Steps of the package's encoders, counted before (`benchmarks/count_steps.py`) and kept beside this module, so that
the planner answers at once.

They hold for the versions of the libraries and for the code that they were counted with; with others it counts.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from glioma_dist.config import ModelConfig
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.scale.step import Level, Step
from glioma_dist.scale.step_memory import SizeFormula

FILE = Path(__file__).with_name("counted_steps.json")
LIBRARIES = ("torch", "timm")
PACKAGE = Path(__file__).parents[1]
CODE = ("model", "scale", "losses.py")
"""Folders and files of the package that decide what a step holds."""
NOT_CODE = ("planner.py", "answers.py", "counted_steps.py", "fsdp.py", "buckets.py", "loss_scale.py", "operations.py")
"""Of these folders what decides nothing of it."""
LARGEST_UNITS = 512
"""Of a side: 16,384 pixels. The formulas hold no moments that are the peak beyond it only."""


def find_formula(step: Step, level: Level) -> SizeFormula | None:
    """The memory of one image at any size, exact for the levels none and selective; for full a straight line in its
    pixels, with the largest tiles of a GPU. None where the step was not counted."""
    model = step.model
    counted = (ModelConfig.norm, ModelConfig.decoder_channels, DEFAULT_LOSS, 1, 1)
    asked = (model.norm, model.decoder_channels, step.loss_name, step.batch_size, step.spatial_parallel)
    if asked != counted or max(step.size.width, step.size.height) > 32 * LARGEST_UNITS:
        return None
    values = _steps().get(model.encoder, {}).get(name_of(level, step.bf16))
    return None if values is None else SizeFormula.of_json(values)


def find_kernel_pixels(encoder: str, full: bool) -> int | None:
    """What `kernel_limits.largest_pixels_of_kernels` finds; None where it was not counted."""
    return _steps().get(encoder, {}).get("kernel_pixels", {}).get("full" if full else "other")


def name_of(level: Level, bf16: bool) -> str:
    return f"{'bf16' if bf16 else 'fp32'} {level}"


def conditions() -> dict[str, str]:
    """What the counted steps depend on, as it is here."""
    found = {"code": _code()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@lru_cache
def _steps() -> dict[str, dict]:
    """By encoder; empty where they were counted under other conditions."""
    try:
        counted = json.loads(FILE.read_text())
    except (OSError, ValueError):
        return {}
    return counted["steps"] if counted["conditions"] == conditions() else {}


def _code() -> str:
    digest = hashlib.sha256()
    files = [
        file for name in CODE for file in ([PACKAGE / name] if name.endswith(".py") else (PACKAGE / name).rglob("*.py"))
    ]
    for file in sorted(files):
        if file.name not in NOT_CODE:
            digest.update(file.relative_to(PACKAGE).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]
