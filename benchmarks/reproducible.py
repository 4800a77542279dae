"""Measures what --reproducible and --keep-every cost: time of a step, and bytes of a GPU.

A step is all from the begin of one to the begin of the next: data, hashes, gradients, optimizer. On a CPU, CPU time of
all threads is measured, so that other programs on the machine change little. On a GPU it is the time of the clock.

    OMP_NUM_THREADS=1 python benchmarks/reproducible.py --encoder mit_b0 --size 512x512 --batch-size 2
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from glioma_dist.cli.arguments import parse
from glioma_dist.config import DataConfig, ModelConfig, TrainConfig
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.reader import ShardWriter
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.scale import planner
from glioma_dist.scale.planner import Step
from glioma_dist.scale.tile_size import largest_gpu_tile
from glioma_dist.size import Size, SizeFlag
from glioma_dist.training import loop

WAYS = {"no flag": {}, "--keep-every 2": {"keep_every": 2}, "--reproducible": {"reproducible": True}}
COUNTED = (("mit_b0", Size(512, 512)), ("mit_b3", Size(1472, 1120)), ("mit_b3", Size(2592, 1952)))
MIB = 2**20


@dataclass(frozen=True)
class CostConfig:
    """Print Markdown tables with the CPU time of a step and the memory of a GPU."""

    encoder: str = "mit_tiny"
    """The U-Net's encoder."""
    size: SizeFlag = field(default_factory=lambda: Size(64, 64))
    """Image size."""
    batch_size: int = 4
    """Images in a step."""
    steps: int = 6
    """Steps of each training, from 3; the first and the last one are not counted."""
    rounds: int = 1
    """How often each training is repeated."""

    def validate(self) -> None:
        ModelConfig(encoder=self.encoder).validate()
        if self.steps < 3 or self.rounds < 1:
            raise InputError(f"--steps {self.steps}, --rounds {self.rounds}: give 3 steps, 1 round, or more")


def draw(folder: Path, size: Size, num_images: int) -> None:
    """Images of noise with a square cell."""
    noise = np.random.default_rng(0)
    with ShardWriter(folder, "noise", "train", "CC0") as writer:
        for number in range(num_images):
            mask = np.zeros((size.height, size.width), np.uint8)
            mask[: size.height // 2, : size.width // 2] = 1
            image = noise.integers(0, 255, mask.shape, np.uint8)
            writer.write(Sample(f"noise-{number}", image, mask, {"num_cells": 1}))


def seconds_of_steps(config: TrainConfig, context: DistributedContext) -> list[float]:
    """Seconds of each step of a training but the first and the last; CPU seconds where that is the device."""
    begins, take = [], loop.train_step
    now = time.process_time if context.device.type == "cpu" else time.perf_counter

    def noted(*given):
        begins.append(now())  # no step ends before its loss is read
        return take(*given)

    loop.train_step = noted
    try:
        loop.train(config, context)
    finally:
        loop.train_step = take
    return [after - before for before, after in pairwise(begins[1:])]


def measure(config: CostConfig) -> None:
    """Train in each way, print the table of times, then that of bytes."""
    here, seconds = DistributedContext.start(), {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "train", config.size, 2 * config.batch_size)
        run = TrainConfig(
            data=DataConfig(train=(f"{folder}/train",), size=config.size, workers=0),
            model=ModelConfig(encoder=config.encoder, norm="group"),
            batch_size=config.batch_size,
            max_steps=config.steps,
        )
        for number in range(config.rounds):
            for name, flags in WAYS.items():
                seconds[name] += seconds_of_steps(replace(run, out=Path(folder) / f"{name}{number}", **flags), here)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"\n{config.encoder}, {config.size}, batch {config.batch_size}, {here.device.type}, "
        f"{here.accelerator.mixed_precision}, OMP_NUM_THREADS={threads}"
    )
    print("\n| Flag | Time of a step (s), median | Least | Share |\n|---|---|---|---|")
    plain = statistics.median(seconds["no flag"])
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"| {name} | {middle:.3f} | {min(found):.3f} | {middle / plain:.3f} |")
    print_bytes()


def print_bytes() -> None:
    """Print the memory of a step of one image on one GPU in bf16, as the planner counts it."""
    print("\n| Encoder, size | Sent a step (MiB) | with the flag | Memory (MiB), selective | with the flag |")
    print("|---|---|---|---|---|")
    for encoder, size in COUNTED:
        model, loss = ModelConfig(encoder=encoder), partial(segmentation_loss, "dice")  # these steps are stored
        plain = Step(model, size, 1, True, num_devices=2, tile_size=largest_gpu_tile(), loss=loss)
        one, other = (planner.count(step, "selective") for step in (plain, replace(plain, has_exact_sum=True)))
        sent = one.gradients / MIB
        print(f"| {encoder}, {size} | {sent:.0f} | {2 * sent:.0f} | {one.peak / MIB:.0f} | {other.peak / MIB:.0f} |")


if __name__ == "__main__":
    run_command(lambda: measure(parse(CostConfig)))
