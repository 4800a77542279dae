"""What a training step costs at each level: time, how busy the GPU is, launches, and waits for the GPU."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.benchmark.proof.trainings import step_config, train_here, variables_of_step
from glioma_dist.benchmark.watched_steps import watched_steps
from glioma_dist.config import TrainConfig
from glioma_dist.scale.step import LEVELS
from glioma_dist.size import Size

ENCODER, NATIVE = "mit_b3", "2592x1952"
SLOWEST_STEP_S = 5.0
"""Of MiT-B3 at the native size: about 4 TFLOP. A step that takes longer does not run on the GPU."""
DEAREST = {"selective": 1.8, "full": 2.5, "offload": 3.5}
"""Of a level's step, in times that of none: the forward pass, a third of a step, is computed twice, and tiles. An H100
had 1.23 and 1.93, an H200 1.39 and 1.76, another beside a slower CPU 1.58, 2.08 and, for offload, 2.97."""
DEAREST_OF_TINY = 8.0
"""On tiny images Python takes most of the time, and what else runs on the machine the rest."""
LEAST_BUSY = {"none": 0.8, "selective": 0.6, "full": 0.5, "offload": 0.4}
"""Below it the GPU waits for the CPU to launch: the more, the more of a step is in tiles. An H100 had 0.92, 0.87 and
0.65, an H200 0.94, 0.79 and 0.73, another beside a slower CPU (47 µs from one launch to the next) 0.91, 0.67, 0.60 and,
for offload, 0.49."""
MOST_LAUNCHES = 6_000
"""Of a step of MiT-B3 at the native size without activation checkpointing. 2,926 operations that start a kernel are
counted on fake tensors, the optimizer left out; an operation can start several. An H100 had 3,955 launches."""
MORE_LAUNCHES = {"selective": 1.5, "full": 2.75, "offload": 3.5}
"""Of a level, in times those of none: 1.34 and 2.43 are counted, 1.30 and 2.17 were seen on an H100. The forward pass
is launched again, and tiles."""
MOST_SYNCHRONISATIONS = 1
"""The one read of the loss, the norm and the stop vote."""
SYNCHRONISING = "synchronizing CUDA operation"
"""In the warnings of `torch.cuda.set_sync_debug_mode`."""
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
WARM_UP, TIMED = 2, 4
NUM_STEPS = WARM_UP + TIMED + 2
END_OF_STEP = "end of the step"


@dataclass(frozen=True)
class Costs:
    """Of one step. busy, synchronisations and warned: None on a CPU, which has no queue. What a profile would show and
    does not, as where a machine lets nobody profile its GPU, is nan, so that no limit of it holds."""

    seconds: float
    launches: float
    busy: float | None = None
    synchronisations: float | None = None
    """Calls of CUDA that wait, in a profile."""
    warned: int | None = None
    """Operations of which PyTorch itself says that they wait (`set_sync_debug_mode`)."""


def measure_levels(setting: Setting, findings: Findings) -> None:
    """A step of training itself, its reads of the loss included, at each level."""
    device = torch.device(setting.device)
    plain: Costs | None = None
    for level in LEVELS:
        config = step_config(setting, f"steps {level}", level, ENCODER, Size.parse(NATIVE), NUM_STEPS)
        costs = measure(config, variables_of_step(setting), device)
        plain = plain or costs
        told = f"{config.model.encoder} {config.data.size}: {1000 * costs.seconds:.1f} ms"
        launches = f"{costs.launches} launches"
        if level == "none":
            findings.at_most("none: step", costs.seconds, SLOWEST_STEP_S, "s", told)
            findings.at_most("none: launches", costs.launches, MOST_LAUNCHES, "a step")
        else:
            dearest = DEAREST_OF_TINY if setting.tiny else DEAREST[level]
            findings.at_most(f"{level}: step", costs.seconds / plain.seconds, dearest, "times none", told)
            more = costs.launches / plain.launches
            findings.at_most(f"{level}: launches", more, MORE_LAUNCHES[level], "times none", launches)
        if costs.busy is None or costs.synchronisations is None or costs.warned is None:
            findings.skipped(f"{level}: GPU busy", "a CPU computes what it is given at once")
            for name in ("synchronisations", "synchronising operations"):
                findings.skipped(f"{level}: {name}", "a CPU has no queue to wait for")
        else:
            findings.at_least(f"{level}: GPU busy", costs.busy, LEAST_BUSY[level], "of the step")
            findings.at_most(f"{level}: synchronisations", costs.synchronisations, MOST_SYNCHRONISATIONS, "a step")
            name = f"{level}: synchronising operations"
            findings.at_most(name, costs.warned, MOST_SYNCHRONISATIONS, "a step")


def measure(config: TrainConfig, with_variables: Mapping[str, str], device: torch.device) -> Costs:
    """Train for `WARM_UP` + `TIMED` steps and two more, which are looked into."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds: list[float] = []
    found: list[Costs] = []

    def watch(take_step: Callable[[], Any], number: int) -> Any:
        synchronise()
        start = time.perf_counter()
        if number < WARM_UP + TIMED:
            result = take_step()
            synchronise()
            seconds.append(time.perf_counter() - start)
            return result
        if found:
            result, warned = count_warned(take_step, device)
            found.append(replace(found[0], warned=warned))
            return result
        result, costs = look_into(take_step, statistics.median(seconds[WARM_UP:]), device)
        found.append(costs)
        return result

    with watched_steps(lambda take_step, _, number: watch(take_step, number)):
        train_here(config, with_variables)
    return found[-1]


def count_warned(take_step: Callable[[], Any], device: torch.device) -> tuple[Any, int | None]:
    """What a step returns, and how many of its operations make the CPU wait for the GPU; None on a CPU."""
    if device.type != "cuda":
        return take_step(), None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = take_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return result, sum(SYNCHRONISING in str(each.message) for each in said)


def look_into(take_step: Callable[[], Any], seconds: float, device: torch.device) -> tuple[Any, Costs]:
    """What a step returns, and what it costs. seconds: of a step that nobody looks into."""
    if device.type != "cuda":
        with _Operations() as operations:
            result = take_step()
        return result, Costs(seconds, operations.count)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        result = take_step()
        # The profiler itself waits for the GPU when it ends: what comes after this mark is not the step's.
        with record_function(END_OF_STEP):
            pass
    events = list(profiler.profiler.kineto_results.events())
    end = min(event.start_ns() for event in events if event.name() == END_OF_STEP)
    own = [event for event in events if event.start_ns() < end]
    waits = sum(event.name() in WAITS for event in own)
    launches = sum(event.name() in LAUNCHES for event in own)
    spans = kernel_spans(events)
    if not launches or not spans:
        return result, Costs(seconds, math.nan, math.nan, math.nan)
    return result, Costs(seconds, launches, busy_seconds(spans) / seconds, waits)


def kernel_spans(events: Iterable[Any]) -> list[tuple[int, int]]:
    """Begin and end, in ns, of all that a profile saw on the GPU."""
    return [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.device_type() == torch.autograd.DeviceType.CUDA and not event.is_user_annotation()
    ]


def busy_seconds(spans: Iterable[tuple[int, int]]) -> float:
    """Seconds, of spans in ns, in which at least one runs."""
    busy, until = 0, 0
    for begin, end in sorted(spans):
        busy += max(0, end - max(begin, until))
        until = max(until, end)
    return busy / 1e9


class _Operations(TorchDispatchMode):
    """Counts the operations that compute or copy: those that would each launch a kernel, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
