"""Rows of `glioma-dist plan`: the levels of activation checkpointing at one size, estimated, and what fits a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from glioma_dist.config.byte_size import parse_bytes
from glioma_dist.config.plan import PlanConfig, spatial_parallel_sizes
from glioma_dist.config.recipe import num_moments
from glioma_dist.errors import InputError
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss
from glioma_dist.registry import encoders
from glioma_dist.scale.device_memory import GIB, usable
from glioma_dist.scale.memory_budget import choose_plan
from glioma_dist.scale.memory_estimator import estimate_unet_step
from glioma_dist.scale.micro_batches import allows_micro_batches, images_at_once
from glioma_dist.scale.planner import ADAM_MOMENTS, Level, Step, count, fits, largest_batch, largest_size
from glioma_dist.scale.step_memory import StepMemory
from glioma_dist.scale.tile_size import largest_gpu_tile
from glioma_dist.size import Size

COMPARED: tuple[tuple[str, bool, Level, bool], ...] = (
    ("fp32", False, "none", False),
    ("bf16", True, "none", False),
    ("bf16, selective", True, "selective", False),
    ("bf16, full", True, "full", False),
    ("bf16, offload", True, "offload", False),
    ("the same, optimizer in backward", True, "offload", True),
)
"""Name, bf16, level of activation checkpointing, whether the optimizer steps in the backward pass."""


def levels_of(plan: PlanConfig, size: Size, memory: float | None) -> Iterator[dict]:
    """Yield the levels at one size as they are estimated; with several GPUs all levels for each number of GPUs per
    image, and FSDP2 with the level full."""
    if plan.gradient_accumulation > 1 and not allows_micro_batches(plan.model):
        raise InputError(
            f"--gradient-accumulation {plan.gradient_accumulation}: --model.encoder {plan.model.encoder} has batch "
            "norm, which takes its statistics over the whole batch; give an encoder without it, such as mit_b0"
        )
    for number in spatial_parallel_sizes(plan, size):
        is_whole = plan.gpus == plan.gradient_accumulation == 1
        compared = [(*each, False) for each in COMPARED if is_whole or not each[3]]
        if plan.gpus > 1:
            compared.append(("bf16, full, FSDP2", True, "full", False, True))
        for name, bf16, level, in_backward, shards in compared:
            num_parts = plan.gradient_accumulation
            step = replace(step_of(plan, size, number, bf16, shards), optimizer_in_backward=in_backward)
            memory_of_step = count(step, level)
            row = described(f"{name}, {number} GPUs per image" if number > 1 else name, size, memory_of_step)
            # There and back, one image after another: what is copied for a micro-batch is copied for each.
            copied = 2 * memory_of_step.host * num_parts
            row |= {
                "bf16": bf16,
                "activation_checkpointing": level,
                "spatial_parallel": number,
                "fsdp2": shards,
                "optimizer_in_backward": in_backward,
                "copies_s": copied / (plan.link_bandwidth * 1e9),
            }
            if memory is not None:
                free = usable(memory)
                row["fits"] = fits(step, level, free)
                most = largest_batch(replace(step, batch_size=1), level, free) * num_parts
                row["largest_batch"] = most * plan.gpus // number
                row["largest_size"] = str(largest_size(step, level, free) or "none")
            yield row
        if plan.memory_budget is not None:
            yield budget_row(plan, size, number)
    if plan.smp:
        # Not in bf16: autocast on a GPU computes its softmax in fp32; a CPU's, with which steps are counted, does not.
        model, loss = build_smp(plan.model.encoder)(), partial(segmentation_loss, DEFAULT_LOSS)
        moments = num_moments(plan.optimizer, plan.momentum)
        images = plan.batch_size // plan.gpus
        memory = estimate_unet_step(model, loss, size, images, bf16=False)
        memory = replace(memory, optimizer=memory.optimizer * moments // ADAM_MOMENTS)
        yield described("smp, fp32", size, memory)


def step_of(plan: PlanConfig, size: Size, num_spatial: int, bf16: bool, shards: bool = False) -> Step:
    """What one GPU does in a step. num_spatial: GPUs that share each image."""
    return Step(
        plan.model,
        size,
        images_at_once(plan.batch_size * num_spatial // plan.gpus, plan.gradient_accumulation),
        bf16,
        plan.gpus,
        num_spatial,
        shards,
        num_micro_batches=plan.gradient_accumulation,
        has_average=plan.ema_decay is not None,
        num_moments=num_moments(plan.optimizer, plan.momentum),
        freeze_encoder=plan.freeze_encoder,
        tile_size=largest_gpu_tile(),
        loss=partial(segmentation_loss, DEFAULT_LOSS),
    )


def budget_row(plan: PlanConfig, size: Size, num_spatial: int) -> dict:
    """The plan for the memory budget; the memory is the sum over the network's units, which training counts again.

    Raises InputError where nothing fits.
    """
    budget = parse_bytes("--memory-budget", str(plan.memory_budget), "8GiB")
    step = step_of(plan, size, num_spatial, bf16=True)
    try:
        chosen = choose_plan(step, budget, counts=False)
    except InputError as error:
        raise InputError(f"--memory-budget: {error}") from error
    name = f"bf16, budget {plan.memory_budget}"
    row = described(f"{name}, {num_spatial} GPUs per image" if num_spatial > 1 else name, size, chosen.memory)
    return row | {
        "bf16": True,
        "memory_budget": plan.memory_budget,
        "keeps": str(chosen.plan),
        "spatial_parallel": num_spatial,
        "fsdp2": False,
        "recomputed_time": chosen.recomputed_time,
        "recomputed_flops": chosen.recomputed_flops,
    }


def build_smp(encoder: str) -> Callable:
    import segmentation_models_pytorch

    name = encoders.find(encoder).smp_name
    return lambda: segmentation_models_pytorch.Unet(name, encoder_weights=None, decoder_interpolation="bilinear")


def described(name: str, size: Size, memory: StepMemory) -> dict:
    parts = {
        "parameters_gib": memory.parameters,
        "gradients_gib": memory.gradients,
        "optimizer_gib": memory.optimizer,
        "kept_gib": memory.kept,
        "momentary_gib": memory.momentary,
        "peak_gib": memory.peak,
        "host_gib": memory.host,
    }
    return {"name": name, "size": str(size)} | {part: value / GIB for part, value in parts.items()}
