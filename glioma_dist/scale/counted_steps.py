"""Steps of the package's encoders, counted before (`benchmarks/count_steps.py`) and kept beside this module, so that
the planner answers at once.

They hold for the versions of the libraries and for the code that they were counted with; with others it counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from glioma_dist.config import ModelConfig
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.scale.step import IN_TILES, Level, Step
from glioma_dist.scale.step_memory import SizeFormula, StepMemory
from glioma_dist.scale.tile_size import largest_gpu_tile

FILE = Path(__file__).with_name("counted_steps.json")
LIBRARIES = ("torch", "timm")
PACKAGE = Path(__file__).parents[1]
CODE = ("model", "scale", "losses")
"""Folders and files of the package that decide what a step holds."""
NOT_CODE = {
    *("planner.py", "device_memory.py", "answers.py", "counted_steps.py", "fsdp.py", "buckets.py", "loss_scale.py"),
    *("operations.py", "micro_batches.py", "optimizer.py", "parameter_groups.py", "module_memory.py"),
    *("known_values.py", "optimizer_in_backward.py"),
    *("memory_budget.py", "observed_step.py", "step_units.py", "unit_costs.py"),
    *("checkpoint.py", "checkpoint_writer.py", "hub.py", "licences.py", "manifest.py", "tensor_files.py", "pretrained"),
}
"""Of these folders what decides nothing of it."""
UNIT = 32
"""Pixels, of formulas."""
LARGEST_UNITS = 512
"""Of a side: 16,384 pixels. The formulas hold no moments that are the peak beyond it only."""


CLOSE = " close"
"""Ends the names of formulas that are not exact, because maps are padded or the decoder's last upsampling goes in
pieces."""
LEAST_CLOSE_PIXELS = 2**21
"""From here on tiles and pieces have their full size, so that formulas which are not exact are close."""
UNPADDED_BYTES = 12
"""Of a pixel: the fp32 image that stands beside its padded copy where a side is no multiple of 32."""


def find_formula(step: Step, level: Level, as_large: bool = False) -> SizeFormula | None:
    """The memory of one image at any size, exact for the levels none and selective; for the others a straight line in
    its pixels, with the largest tiles of a GPU. None where the step was not counted."""
    is_beyond = level not in IN_TILES and max(step.size.width, step.size.height) > UNIT * LARGEST_UNITS
    if step.batch_size != 1 or is_beyond:
        return None
    return _find(step, _name(step, level, as_large))


def find_memory(step: Step, level: Level) -> StepMemory | None:
    """What a step takes, without counting it: within 7 %, for sizes and batches that have no exact formula. None where
    a count is needed.

    A batch counts as one image of the same number of rows: that is the same number of elements in each map. Beyond the
    size up to which the formula is exact, maps go in tiles and take less.
    """
    height, width = step.batch_size * math.ceil(step.size.height / UNIT), math.ceil(step.size.width / UNIT)
    name = _name(step, level)
    formula = _find(step, name)
    if formula is None or level in IN_TILES:
        if height * width * UNIT**2 < LEAST_CLOSE_PIXELS or (
            level in IN_TILES and step.tile_size != largest_gpu_tile()
        ):
            return None
        formula = formula or _find(step, name + CLOSE)
    if formula is None:
        return None
    memory, unpadded = formula.at(height, width), unpadded_bytes(step)
    return replace(memory, kept=memory.kept + unpadded, besides_gradients=memory.besides_gradients + unpadded)


def unpadded_bytes(step: Step) -> int:
    """Of the images that stand beside their padded copies."""
    if step.size.height % UNIT == 0 and step.size.width % UNIT == 0:
        return 0
    return UNPADDED_BYTES * step.batch_size * step.size.height * step.size.width


def is_inexact(step: Step, level: Level) -> bool:
    """Whether it is known that no formula of the step is exact, so that none needs to be traced."""
    return _find(step, _name(step, level) + CLOSE) is not None


def _name(step: Step, level: Level, as_large: bool = False) -> str:
    return name_of(level, step.bf16, step.optimizer_in_backward, as_large or step.has_large_images)


def _find(step: Step, name: str) -> SizeFormula | None:
    """The formula of this name, where the step is of the kind that was counted, whatever its size and batch."""
    model = step.model
    counted = (ModelConfig.norm, ModelConfig.encoder_norm, ModelConfig.decoder_channels, 1, DEFAULT_LOSS, 1, False)
    network = (model.norm, model.encoder_norm, model.decoder_channels, model.num_outputs)
    if (*network, step.loss_name, step.spatial_parallel, step.freeze_encoder) != counted:
        return None
    values = _steps().get(model.encoder, {}).get(name)
    return None if values is None else SizeFormula.of_json(values)


def find_kernel_pixels(encoder: str, in_tiles: str) -> int | None:
    """What `kernel_limits.largest_pixels_of_kernels` finds; None where it was not counted."""
    return _steps().get(encoder, {}).get("kernel_pixels", {}).get(in_tiles)


def name_of(level: Level, bf16: bool, in_backward: bool = False, are_large: bool = False) -> str:
    """Of a formula. are_large: whether the images are, which matters at the level offload."""
    text = f"{'bf16' if bf16 else 'fp32'} {level}{', optimizer in backward' if in_backward else ''}"
    return text + ", large images" * (are_large and level == "offload")


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
        if NOT_CODE.isdisjoint(file.relative_to(PACKAGE).parts):
            digest.update(file.relative_to(PACKAGE).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]
