"""Measures steps with memory budgets beside steps with the levels of activation checkpointing, in turns.

    python benchmarks/memory_budget.py --encoder mit_b0 --size 512x384

Works on a CPU, in fp32.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch

from glioma_dist.cli.arguments import parse
from glioma_dist.config import ModelConfig
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.checkpoint_plan import LEVEL_PLANS, CheckpointPlan
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.memory_budget import choose_plan
from glioma_dist.scale.planner import count
from glioma_dist.scale.step import ON_DEVICE, Step
from glioma_dist.scale.tile_size import CPU_TILE
from glioma_dist.size import Size, SizeFlag


@dataclass(frozen=True)
class MemoryBudgetConfig:
    """Print a Markdown table: counted memory and CPU seconds of a step at each level, and with budgets at the peaks of
    selective and full and half-way from full to none."""

    encoder: str = "mit_b0"
    """The U-Net's encoder."""
    size: SizeFlag = field(default_factory=lambda: Size(512, 384))
    """Image size."""
    repeats: int = 5
    """Number of timed steps of each, after one that is not timed."""

    def validate(self) -> None:
        ModelConfig(encoder=self.encoder).validate()
        if self.repeats < 1:
            raise InputError(f"--repeats {self.repeats}: give 1 or more")


def measure(config: MemoryBudgetConfig) -> None:
    loss = partial(segmentation_loss, "dice")
    step = Step(ModelConfig(encoder=config.encoder), config.size, 1, False, tile_size=CPU_TILE, loss=loss)
    plans: dict[str, CheckpointPlan] = {level: LEVEL_PLANS[level] for level in ON_DEVICE}
    peaks = {name: count(step, plan).peak for name, plan in plans.items()}
    half = (peaks["none"] + peaks["full"]) // 2
    for name, budget in (("selective", peaks["selective"]), ("half-way", half), ("full", peaks["full"])):
        plans[f"budget {name}"] = choose_plan(step, budget).plan
    models = {name: build(step.model, plan) for name, plan in plans.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(config.repeats + 1):
        for name, model in models.items():
            begin = time.process_time()
            take_step(model, config.size, loss)
            if number:
                seconds[name].append(time.process_time() - begin)
    print("| | MiB counted | CPU s a step, median (least to most) |\n|---|---:|---:|")
    for name, plan in plans.items():
        times = seconds[name]
        told = f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        print(f"| {name} | {count(step, plan).peak / 2**20:.0f} | {told} |")


def build(config: ModelConfig, plan: CheckpointPlan) -> UNet:
    model = build_model(config, 0)[0]
    checkpoint_activations(model, plan)
    return model


def take_step(model: UNet, size: Size, loss: partial) -> None:
    images = torch.zeros(1, 1, size.height, size.width, dtype=torch.uint8)
    compute_gradients(model, images, images[:, 0], loss, nullcontext, seeds=torch.zeros(1, dtype=torch.int64))
    model.zero_grad()


if __name__ == "__main__":
    run_command(lambda: measure(parse(MemoryBudgetConfig)))
