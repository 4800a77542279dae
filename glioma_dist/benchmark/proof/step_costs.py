"""What a training step costs at each level: time, how busy the GPU is, launches, and waits for the GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.benchmark.proof.steps import LEVELS
from glioma_dist.benchmark.proof.trainings import environment, make_config, variables
from glioma_dist.config import TrainConfig
from glioma_dist.data.loader import Batch
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.signals import StopSignal
from glioma_dist.size import Size
from glioma_dist.training.launch_and_data import join_spatial_group
from glioma_dist.training.loop import prepare, train_step
from glioma_dist.training.run_folder import RunFolder
from glioma_dist.training.trainer import Trainer

NATIVE = Size(2592, 1952)
SLOWEST_STEP_S = 5.0
"""Of MiT-B3 at the native size: about 4 TFLOP. A step that takes longer does not run on the GPU."""
DEAREST = {"selective": 2.0, "full": 2.5}
"""Of a level's step, in times that of none: the forward pass, a third of a step, is computed twice, and tiles."""
DEAREST_OF_TINY = 20.0
"""On tiny images Python takes most of the time, and what else runs on the machine the rest."""
LEAST_BUSY = 0.7
"""Below it the GPU waits for the CPU to launch."""
MOST_LAUNCHES = 20_000
"""Of a step of MiT-B3 without activation checkpointing: about 14,000 are counted on fake tensors (docs/log.md)."""
MORE_LAUNCHES = {"selective": 1.5, "full": 1.75}
"""Of a level, in times those of none: its forward pass is launched again, and tiles."""
MOST_SYNCHRONISATIONS = 1
"""The one read of the loss, the norm and the stop vote."""
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
WARM_UP, TIMED = 3, 5


@dataclass(frozen=True)
class Costs:
    """Of one step. busy and synchronisations: None on a CPU, which has no queue."""

    seconds: float
    launches: int
    busy: float | None = None
    synchronisations: int | None = None


def measure_levels(setting: Setting, findings: Findings) -> None:
    """A step of training itself, its reads of the loss included, at each level."""
    device = torch.device(setting.device)
    changes: dict[str, Any] = {"val": None} if setting.tiny else {"val": None, "encoder": "mit_b3", "size": NATIVE}
    if not setting.tiny:
        changes |= {"decoder_channels": (256, 128, 64, 32, 16), "batch_size": 1, "transform": "resize"}
    plain: Costs | None = None
    for level in LEVELS:
        config = make_config(setting, f"steps {level}", activation_checkpointing=level, **changes)
        with environment(variables(setting, "no" if setting.tiny else "bf16")), training(config) as (trainer, batch):
            costs = measure(lambda number, trainer=trainer, batch=batch: train_step(trainer, batch, number), device)
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
        if costs.busy is None or costs.synchronisations is None:
            findings.skipped(f"{level}: GPU busy", "a CPU computes what it is given at once")
            findings.skipped(f"{level}: synchronisations", "a CPU has no queue to wait for")
        else:
            findings.at_least(f"{level}: GPU busy", costs.busy, LEAST_BUSY, "of the step")
            findings.at_most(f"{level}: synchronisations", costs.synchronisations, MOST_SYNCHRONISATIONS, "a step")


@contextmanager
def training(config: TrainConfig) -> Iterator[tuple[Trainer, Batch]]:
    """A run that is ready for its first step, and a batch on its device."""
    context = DistributedContext.start()
    with StopSignal() as stop, RunFolder(config, context) as folder:
        trainer, _ = prepare(config, context, join_spatial_group(config, context), folder, stop)
        trainer.model.train()
        size, count = config.data.size, config.batch_size
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 1, size.height, size.width), dtype=torch.uint8, generator=generator)
        batch = Batch(images, (images[:, 0] > 180).to(torch.uint8), torch.arange(count), tuple(map(str, range(count))))
        yield trainer, batch.to(context.device)


def measure(take_step: Callable[[int], Any], device: torch.device) -> Costs:
    """take_step: is given the number of the step."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for number in range(WARM_UP + TIMED):
        synchronise()
        start = time.perf_counter()
        take_step(number)
        synchronise()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[WARM_UP:])
    if device.type != "cuda":
        with _Operations() as operations:
            take_step(WARM_UP + TIMED)
        return Costs(median, operations.count)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        take_step(WARM_UP + TIMED)
    events = list(profiler.profiler.kineto_results.events())
    waits = sum(event.name() in WAITS for event in events)
    torch.cuda.synchronize()
    launches = sum(event.name() in LAUNCHES for event in events)
    return Costs(median, launches, busy_seconds(kernel_spans(events)) / median, waits)


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
