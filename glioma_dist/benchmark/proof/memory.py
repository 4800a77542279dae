"""Whether a step takes the memory that the estimator counts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from glioma_dist.benchmark.peak_memory import GIB, PeakMemory, peak_of_profile
from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.benchmark.proof.trainings import step_config, train_here, variables_of_step
from glioma_dist.benchmark.watched_steps import watched_steps
from glioma_dist.config import TrainConfig
from glioma_dist.errors import MemoryFullError
from glioma_dist.scale.device_memory import RESERVED_SHARE, WORKSPACES_GIB
from glioma_dist.scale.planner import count
from glioma_dist.scale.step import LEVELS, ON_DEVICE
from glioma_dist.size import Size
from glioma_dist.training.memory import step_of
from glioma_dist.training.trainer import Trainer

ENCODER = "mit_b3"
SIZES = {"native": "2592x1952", "middle": "1472x1120", "small": "704x512"}
TINY_ENCODER = "mit_b0"
TINY_SIZES = {"native": "256x192", "middle": "160x128", "small": "96x64"}
LEVELS_OF_SIZE = {"native": LEVELS, "middle": ON_DEVICE, "small": LEVELS[:1]}
"""Counting takes time, and of a small image most memory is the weights' at each level."""
TOLERANCE = 0.10
MEASURED = 1
"""Number of the step that is measured, from 0: Adam's moments are there from the second on."""
NUM_STEPS = MEASURED + 2
TYPICAL_WORKSPACES_GIB = 0.1
"""Of cuBLAS and cuDNN, beside the tensors that are counted."""


@dataclass
class Peak:
    """GiB of one step."""

    counted: float
    allocated: float
    reserved: float | None
    """None on a CPU."""
    fits: bool | None
    """Whether the step after it was taken in as much memory as the planner asks for; None on a CPU."""


def compare_with_estimator(setting: Setting, findings: Findings) -> None:
    """Peak memory of a step of training, at three sizes and the levels of each, beside the planner's; and whether
    the step can be taken in no more memory than the planner asks for."""
    workspaces = 0.0 if setting.device == "cpu" else TYPICAL_WORKSPACES_GIB
    encoder, sizes = (TINY_ENCODER, TINY_SIZES) if setting.tiny else (ENCODER, SIZES)
    for name, size in sizes.items():
        for level in LEVELS_OF_SIZE[name]:
            place = f"{name}, {level}"
            config = step_config(setting, place, level, encoder, Size.parse(size), NUM_STEPS, tiny=False)
            try:
                peak = measure_peak(config, setting)
            except MemoryFullError as error:
                for kind in ("allocated", "fits"):
                    findings.skipped(f"{place}: {kind}", str(error))
                continue
            told = f"{encoder} {size}: counted {peak.counted:.3f} GiB, allocated {peak.allocated:.3f} GiB"
            difference = abs((peak.counted + workspaces) / peak.allocated - 1)
            findings.at_most(f"{place}: allocated", difference, TOLERANCE, note=told)
            if peak.reserved is None or peak.fits is None:
                findings.skipped(f"{place}: fits", "the memory of a CPU cannot be limited")
            else:
                told = f"{needed(peak.counted):.3f} GiB; without a limit PyTorch reserved {peak.reserved:.3f} GiB"
                findings.equal(f"{place}: fits", int(peak.fits), 1, note=told)


def needed(counted: float) -> float:
    """Free GiB with which the planner says that a step of `counted` GiB fits."""
    return (counted + WORKSPACES_GIB) / (1 - RESERVED_SHARE)


def measure_peak(config: TrainConfig, setting: Setting) -> Peak:
    """Of the run's second step; its third is taken within a limit. Raises MemoryFullError."""
    found: list[Peak] = []

    def watch(take_step: Callable[[], Any], trainer: Trainer, number: int) -> Any:
        if number == MEASURED:
            counted = count(step_of(trainer.config, trainer.context), trainer.level).peak / GIB
            result, allocated, reserved = measure_step(take_step, trainer)
            found.append(Peak(counted, allocated, reserved, None if reserved is None else False))
            return result
        if number > MEASURED and setting.device == "cuda":
            with at_most_gib(needed(found[0].counted)):
                result = take_step()
                torch.cuda.synchronize()
            found[0].fits = True
            return result
        return take_step()

    gc.collect()
    try:
        with watched_steps(watch):
            train_here(config, variables_of_step(setting))
    except MemoryFullError:
        if not found:
            raise
    return found[0]


@contextmanager
def at_most_gib(gib: float) -> Iterator[None]:
    """Within it PyTorch may take no more of the GPU: what it asks for beyond is out of memory."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / torch.cuda.get_device_properties(0).total_memory))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


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
