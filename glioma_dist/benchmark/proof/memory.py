"""Whether a step takes the memory that the estimator counts."""

from __future__ import annotations

import gc

import torch
from torch.profiler import ProfilerActivity, profile

from glioma_dist.benchmark.peak_memory import GIB, PeakMemory, peak_of_profile
from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.benchmark.proof.steps import LEVELS, LOSS, build, draw_images, make_step
from glioma_dist.config import ModelConfig
from glioma_dist.errors import is_out_of_memory
from glioma_dist.scale.planner import Level, Step, count
from glioma_dist.size import Size

SIZES = ("704x512", "1472x1120", "2592x1952")
TINY_SIZES = ("96x64", "160x128", "256x192")
ENCODER, TINY_ENCODER = "mit_b3", "mit_b0"
TOLERANCE = 0.10
NAMES = ("small", "middle", "native")
"""Of the three sizes: lines keep their names in a rehearsal."""


def compare_with_estimator(setting: Setting, findings: Findings) -> None:
    """Peak memory of a step, at three sizes and all levels, beside what the planner says."""
    encoder, sizes = (TINY_ENCODER, TINY_SIZES) if setting.tiny else (ENCODER, SIZES)
    for name, size in zip(NAMES, map(Size.parse, sizes), strict=True):
        for level in LEVELS:
            step = Step(ModelConfig(encoder=encoder), size, 1, bf16=not setting.tiny, loss=LOSS)
            counted = count(step, level).peak / GIB
            place = f"{name}, {level}"
            try:
                allocated, reserved = measure_peak(encoder, level, size, torch.device(setting.device))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                for kind in ("allocated", "reserved"):
                    findings.skipped(f"{place}: {kind}", f"{size} needs {counted:.1f} GiB: {error}")
                continue
            told = f"{encoder} {size}: counted {counted:.3f} GiB, allocated {allocated:.3f} GiB"
            findings.at_most(f"{place}: allocated", abs(counted / allocated - 1), TOLERANCE, note=told)
            if reserved is None:
                findings.skipped(f"{place}: reserved", "PyTorch reserves memory on GPUs only")
            else:
                told = f"counted {counted:.3f} GiB, reserved {reserved:.3f} GiB"
                findings.at_most(f"{place}: reserved", abs(reserved / counted - 1), TOLERANCE, note=told)


def measure_peak(encoder: str, level: Level, size: Size, device: torch.device) -> tuple[float, float | None]:
    """GiB allocated, and reserved, at the worst moment of a second step: by then Adam's moments are there."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    model = build(encoder, level, device)
    optimizer = torch.optim.Adam(model.parameters())
    images = draw_images(size, device)
    take_step = make_step(model, images, torch.bfloat16 if device.type == "cuda" else None, optimizer)
    take_step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        memory = PeakMemory(device)
        take_step()
        torch.cuda.synchronize()
        return memory.allocated(), memory.reserved()
    held = [images, *model.parameters(), *model.buffers()]
    held += [each for state in optimizer.state.values() for each in state.values()]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        take_step()
    return peak_of_profile(profiler, sum(each.nbytes for each in held)), None
