"""Whether a step takes the memory that the estimator counts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from glioma_dist.benchmark.peak_memory import GIB, PeakMemory, peak_of_profile
from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.benchmark.proof.steps import LEVELS
from glioma_dist.benchmark.proof.trainings import step_config, train_here, variables_of_step
from glioma_dist.benchmark.watched_steps import watched_steps
from glioma_dist.config import TrainConfig
from glioma_dist.errors import MemoryFullError
from glioma_dist.scale.planner import count
from glioma_dist.size import Size
from glioma_dist.training.memory import step_of
from glioma_dist.training.trainer import Trainer

ENCODER = "mit_b3"
SIZES = {"small": "704x512", "middle": "1472x1120", "native": "2592x1952"}
TINY_ENCODER = "mit_b0"
TINY_SIZES = {"small": "96x64", "middle": "160x128", "native": "256x192"}
TOLERANCE = 0.10
NUM_STEPS = 2
"""Adam's moments are there from the second on, which is measured."""


@dataclass
class Peak:
    """GiB of one step."""

    counted: float
    allocated: float
    reserved: float | None
    """None on a CPU."""


def compare_with_estimator(setting: Setting, findings: Findings) -> None:
    """Peak memory of a step of training, at three sizes and all levels, beside what the planner says of it."""
    encoder, sizes = (TINY_ENCODER, TINY_SIZES) if setting.tiny else (ENCODER, SIZES)
    for name, size in sizes.items():
        for level in LEVELS:
            place = f"{name}, {level}"
            config = step_config(setting, place, level, encoder, Size.parse(size), NUM_STEPS, tiny=False)
            try:
                peak = measure_peak(config, setting)
            except MemoryFullError as error:
                for kind in ("allocated", "reserved"):
                    findings.skipped(f"{place}: {kind}", str(error))
                continue
            told = f"{encoder} {size}: counted {peak.counted:.3f} GiB, allocated {peak.allocated:.3f} GiB"
            findings.at_most(f"{place}: allocated", abs(peak.counted / peak.allocated - 1), TOLERANCE, note=told)
            if peak.reserved is None:
                findings.skipped(f"{place}: reserved", "PyTorch reserves memory on GPUs only")
            else:
                told = f"counted {peak.counted:.3f} GiB, reserved {peak.reserved:.3f} GiB"
                findings.at_most(f"{place}: reserved", abs(peak.reserved / peak.counted - 1), TOLERANCE, note=told)


def measure_peak(config: TrainConfig, setting: Setting) -> Peak:
    """Of the run's last step. Raises MemoryFullError."""
    found: list[Peak] = []

    def watch(take_step: Callable[[], Any], trainer: Trainer, number: int) -> Any:
        if number < NUM_STEPS - 1:
            return take_step()
        counted = count(step_of(trainer.config, trainer.context), trainer.level).peak / GIB
        result, allocated, reserved = measure_step(take_step, trainer)
        found.append(Peak(counted, allocated, reserved))
        return result

    gc.collect()
    with watched_steps(watch):
        train_here(config, variables_of_step(setting))
    return found[0]


def measure_step(take_step: Callable[[], Any], trainer: Trainer) -> tuple[Any, float, float | None]:
    """What a step returns, and GiB allocated and reserved at its worst moment."""
    gc.collect()
    if trainer.context.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        memory = PeakMemory(trainer.context.device)
        result = take_step()
        torch.cuda.synchronize()
        return result, memory.allocated(), memory.reserved()
    held = [*trainer.model.parameters(), *trainer.model.buffers()]
    held += [each for state in trainer.optimizer.state.values() for each in state.values()]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = take_step()
    return result, peak_of_profile(profiler, sum(each.nbytes for each in held)), None
