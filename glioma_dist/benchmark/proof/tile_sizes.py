"""Which size of tiles is quickest at the level full, and whether it is the one that a run takes."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace

import torch

from glioma_dist.benchmark.peak_memory import PeakMemory
from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.benchmark.proof.step_costs import ENCODER, NATIVE, NUM_STEPS, SLOWEST_STEP_S, measure
from glioma_dist.benchmark.proof.trainings import step_config, variables_of_step
from glioma_dist.scale.tile_size import MOST_GPU_ELEMENTS, tile_size
from glioma_dist.size import Size

POWERS = (22, 24, 26, 28)
"""Of two: numbers of the widest map in a tile. The default of a GPU lies between the first two."""
UNIT = "times the quickest up to 2^24"
SLOWEST_DEFAULT = 1.1
"""Of a step, in times that of the quickest tiles that may be a default: larger ones take more memory than a default
shall (`MOST_GPU_ELEMENTS`)."""


def sweep(setting: Setting, findings: Findings) -> None:
    """A step's time, launches and peak memory with each size of tiles, and with the one that a run takes."""
    device = torch.device(setting.device)
    default = tile_size("auto", device).elements
    seconds: dict[int, float] = {}
    for elements in sorted({*(2**power for power in POWERS), default}):
        config = step_config(setting, f"tiles {elements}", "full", ENCODER, Size.parse(NATIVE), NUM_STEPS)
        gc.collect()  # what the training before has left
        memory = PeakMemory(device)
        costs = measure(
            replace(config, scale=replace(config.scale, tile_elements=elements)), variables_of_step(setting), device
        )
        seconds[elements] = costs.seconds
        peak = memory.allocated()
        told = f"{costs.launches} launches" + ("" if peak is None else f", {peak:.2f} GiB at most")
        name = name_of(elements)
        if name in LINES:
            findings.at_most(name, costs.seconds, SLOWEST_STEP_S, "s a step", told)
    if setting.tiny:
        findings.skipped(LINES[-1], "in a rehearsal an image is smaller than any tile, so all take as long")
        return
    compare_default(seconds, default, findings)


def compare_default(seconds: Mapping[int, float], default: int, findings: Findings) -> None:
    """The default against the quickest. seconds: elements of a tile -> of a step."""
    allowed = {elements: each for elements, each in seconds.items() if elements <= MOST_GPU_ELEMENTS}
    best = min(allowed, key=allowed.__getitem__)
    told = f"2^{default.bit_length() - 1} is the default, 2^{best.bit_length() - 1} the quickest"
    findings.at_most(
        LINES[-1], seconds[default] / seconds[best], SLOWEST_DEFAULT, "times the quickest of those up to 2^24", told
    )


def name_of(elements: int) -> str:
    return f"tiles of 2^{elements.bit_length() - 1} numbers"


LINES = (*(name_of(2**power) for power in POWERS), "the default's step")
