"""A run's memory: which recomputation it takes, and what to say when it is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from glioma_dist.config import TrainConfig
from glioma_dist.distributed.context import Runtime
from glioma_dist.distributed.run_command import is_out_of_memory
from glioma_dist.errors import MemoryFullError
from glioma_dist.losses import segmentation_loss
from glioma_dist.scale.planner import Recompute, Step, advice, device_memory, free_memory, resolve


def step_of(config: TrainConfig, runtime: Runtime) -> Step:
    """What one device does in a step of the run."""
    return Step(
        config.model,
        config.data.size,
        batch_size=max(1, config.batch_size * config.scale.rows // runtime.num_processes),
        bf16=runtime.accelerator.mixed_precision != "no",
        num_devices=runtime.num_processes,
        rows=config.scale.rows,
        shards=runtime.accelerator.is_fsdp2,
        loss_name=config.loss,
        loss=partial(segmentation_loss, config.loss),
    )


def choose_recompute(config: TrainConfig, runtime: Runtime) -> Recompute:
    """The run's recomputation: the setting's, or what the planner finds, the same on all processes."""
    if config.scale.recompute != "auto":
        return config.scale.recompute
    free = runtime.gather_objects([free_memory(runtime.device, runtime.num_local_processes)])
    return resolve("auto", step_of(config, runtime), min(free))


@contextmanager
def explain_full_memory(config: TrainConfig, runtime: Runtime, tried: Recompute) -> Iterator[None]:
    """Make a MemoryFullError of an error that says the device's memory is full: what was asked, and what fits."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        memory = device_memory(runtime.device, runtime.num_local_processes)
        raise MemoryFullError(f"out of memory: {advice(step_of(config, runtime), memory, tried)}") from error
