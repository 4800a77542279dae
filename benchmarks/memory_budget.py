"""Measures steps with memory budgets beside steps with the levels of activation checkpointing, in turns.

    python benchmarks/memory_budget.py --encoder mit_b0 --size 512x384

Works on a GPU, in bf16, or on a CPU, in fp32.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch

from glioma_dist.benchmark.peak_memory import GIB, PeakMemory
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
from glioma_dist.scale.step import LEVELS, ON_DEVICE, Step
from glioma_dist.scale.tile_size import CPU_TILE, largest_gpu_tile
from glioma_dist.size import Size, SizeFlag


@dataclass(frozen=True)
class MemoryBudgetConfig:
    """Print a Markdown table: counted memory and time of a step at each level, and with budgets at the peaks of
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
    loss, device = partial(segmentation_loss, "dice"), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_gpu = device.type == "cuda"
    tile = largest_gpu_tile() if is_gpu else CPU_TILE
    step = Step(ModelConfig(encoder=config.encoder), config.size, 1, is_gpu, tile_size=tile, loss=loss)
    plans: dict[str, CheckpointPlan] = {level: LEVEL_PLANS[level] for level in (LEVELS if is_gpu else ON_DEVICE)}
    peaks = {name: count(step, plan).peak for name, plan in plans.items()}
    half = (peaks["none"] + peaks["full"]) // 2
    for name, budget in (("selective", peaks["selective"]), ("half-way", half), ("full", peaks["full"])):
        plans[f"budget {name}"] = choose_plan(step, budget).plan
    models = {name: build(step, plan, device) for name, plan in plans.items()}
    taken: dict[str, list[tuple[float, float | None]]] = {name: [] for name in models}
    for _ in range(config.repeats + 1):
        for name, model in models.items():
            taken[name].append(take_step(model, step, device))
    unit = "GPU seconds" if is_gpu else "CPU s"
    print(f"{config.encoder}, {config.size}, {device.type}\n")
    print(f"| | MiB counted | MiB allocated by the step | {unit} a step, median (least to most) |")
    print("|---|---:|---:|---:|")
    for name, plan in plans.items():
        times = [seconds for seconds, _ in taken[name][1:]]
        told = f"{median(times):.3f} ({min(times):.3f} to {max(times):.3f})"
        peaks_here = [peak for _, peak in taken[name] if peak is not None]
        allocated = f"{1024 * max(peaks_here):.0f}" if peaks_here else "not measured"
        print(f"| {name} | {count(step, plan).peak / 2**20:.0f} | {allocated} | {told} |")


def build(step: Step, plan: CheckpointPlan, device: torch.device) -> UNet:
    """In channels_last on a GPU, as in training."""
    model = build_model(step.model, 0)[0]
    checkpoint_activations(model, plan, step.tile_size)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
        model.encoder.memory_format = torch.channels_last
    return model.to(device)


def take_step(model: UNet, step: Step, device: torch.device) -> tuple[float, float | None]:
    """Seconds of a step without an optimizer, and GiB that it allocates; None on a CPU."""
    images = torch.zeros(1, 1, step.size.height, step.size.width, dtype=torch.uint8, device=device)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=step.bf16)
    is_gpu = device.type == "cuda"
    now = time.perf_counter if is_gpu else time.process_time
    if is_gpu:
        torch.cuda.synchronize()
    memory = PeakMemory(device)
    held, begin = torch.cuda.memory_allocated() / GIB if is_gpu else 0.0, now()
    compute_gradients(model, images, images[:, 0], step.loss, autocast, seeds=torch.zeros(1, dtype=torch.int64))
    model.zero_grad()
    if is_gpu:
        torch.cuda.synchronize()
    seconds, peak = now() - begin, memory.allocated()
    return seconds, peak - held if is_gpu and peak is not None else None


if __name__ == "__main__":
    run_command(lambda: measure(parse(MemoryBudgetConfig)))
