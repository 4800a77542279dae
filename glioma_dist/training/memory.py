"""A run's memory: its level of activation checkpointing, and the message when memory is full."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from glioma_dist.config import TrainConfig
from glioma_dist.config.recipe import num_moments
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.errors import OUT_OF_MEMORY, InputError, MemoryFullError, is_out_of_memory
from glioma_dist.losses import training_loss
from glioma_dist.scale.checkpoint_plan import CheckpointPlan
from glioma_dist.scale.device_memory import GIB, device_memory, free_host_memory, free_memory
from glioma_dist.scale.memory_budget import choose_plan
from glioma_dist.scale.micro_batches import images_at_once
from glioma_dist.scale.planner import Level, Step, advice, count_if_known, resolve
from glioma_dist.scale.tile_size import tile_size

SECONDS_FOR_ADVICE = 10.0
"""Seconds to search for what fits. A launcher that has seen one process end kills the others about 30 s later."""


def step_of(config: TrainConfig, context: DistributedContext) -> Step:
    """What one device does in a step of the run."""
    num_images = max(1, config.batch_size * config.scale.spatial_parallel // context.num_processes)
    num_micro_batches = num_images if config.reproducible else config.scale.gradient_accumulation
    return Step(
        config.model,
        config.data.size,
        batch_size=images_at_once(num_images, num_micro_batches),
        bf16=context.accelerator.mixed_precision != "no",
        num_devices=context.num_processes,
        spatial_parallel=config.scale.spatial_parallel,
        shards=context.accelerator.is_fsdp2,
        loss_name=config.loss,
        num_micro_batches=num_micro_batches,
        has_exact_sum=config.reproducible,
        has_average=config.ema_decay is not None,
        num_moments=num_moments(config.optimizer, config.momentum),
        freeze_encoder=config.freeze_encoder,
        optimizer_in_backward=config.scale.optimizer_in_backward,
        tile_size=tile_size(config.scale.tile_elements, context.device),
        loss=training_loss(config),
    )


def choose_level(config: TrainConfig, context: DistributedContext) -> Level | CheckpointPlan:
    """The run's level of activation checkpointing: the setting, for auto what the planner finds, or the plan for a
    memory budget; the same on all processes.

    Raises InputError if nothing fits the memory, or if a GPU's kernels cannot take the tensors of the level.
    """
    level, step = config.scale.activation_checkpointing, step_of(config, context)
    if (budget := config.scale.budget_bytes) is not None:
        return context.gather_objects([_choose_plan(step, budget)])[0]  # one decides, should the devices differ
    if level != "auto":
        free = _free_on_host(context) if level == "offload" else None
        # To count a step that is not known takes seconds, and on a CPU activations are on the host at every level.
        is_checked = context.device.type == "cuda" or count_if_known(step, "offload") is not None
        return resolve(level, step, math.inf, free if is_checked else None)
    free = context.gather_objects([free_memory(context.device, context.num_local_processes)])
    return resolve("auto", step, min(free), _free_on_host(context) if context.device.type == "cuda" else None)


def _free_on_host(context: DistributedContext) -> float:
    """Bytes that each process may fill with activations, the same on all."""
    return min(context.gather_objects([free_host_memory(context.num_local_processes)]))


def _choose_plan(step: Step, budget: int) -> CheckpointPlan:
    try:
        return choose_plan(step, budget).plan
    except InputError as error:
        raise InputError(f"--scale.memory-budget: {error}") from error


def estimate_memory(config: TrainConfig, context: DistributedContext, level: Level | CheckpointPlan) -> int | None:
    """Peak bytes of a step on one device; None where they would have to be traced, which takes seconds."""
    with suppress(InputError):
        memory = count_if_known(step_of(config, context), level)
        return None if memory is None else memory.peak
    return None


@contextmanager
def explain_full_memory(
    config: TrainConfig, context: DistributedContext, tried: Level | CheckpointPlan
) -> Iterator[None]:
    """Turn an error that says that the device's memory is full into a MemoryFullError that says what fits.

    To find what fits takes seconds. With several processes the error is raised first, so that the others do not wait;
    the command completes it after it has closed the connections to them (`RunError.advise`).
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        step, memory = step_of(config, context), device_memory(context.device, context.num_local_processes)
        host = free_host_memory(context.num_local_processes) if context.device.type == "cuda" else None
        advise = partial(_advice_in_time, step, memory, tried, host)
        if context.num_processes == 1:
            raise MemoryFullError(f"{OUT_OF_MEMORY}: {advise()}") from error
        full = MemoryFullError(f"{OUT_OF_MEMORY} on rank {context.rank} with activation checkpointing {tried}")
        full.advise = advise
        raise full from error


def _advice_in_time(step: Step, memory: float, tried: Level | CheckpointPlan, host_memory: float | None = None) -> str:
    """What fits; if it cannot be found within `SECONDS_FOR_ADVICE`, the command that finds it."""
    found: list[str] = []

    def find() -> None:
        with suppress(Exception):  # the advice is an extra: a thread's traceback would hide the reason
            found.append(advice(step, memory, None if isinstance(tried, CheckpointPlan) else tried, host_memory))

    # In a thread, which ends with the process.
    thread = threading.Thread(target=find, daemon=True)
    thread.start()
    thread.join(SECONDS_FOR_ADVICE)
    return (
        found[0]
        if found
        else (
            f"{step.batch_size} images of {step.size} on this device; to see what fits, run glioma-dist plan "
            f"--model.encoder {step.model.encoder} --size {step.size} --gpu-memory {memory / GIB:.1f}GiB"
        )
    )
