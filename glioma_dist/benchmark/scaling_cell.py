"""One launch of the scaling benchmark: each process trains as in a user's run, and measures time and memory."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from glioma_dist.benchmark.peak_memory import PeakMemory
from glioma_dist.benchmark.watched_steps import watched_steps
from glioma_dist.config import DataConfig, ModelConfig, ScaleConfig, TrainConfig
from glioma_dist.distributed.launched import USE_CPU
from glioma_dist.distributed.numerics import numerics_in_force
from glioma_dist.distributed.run_command import run_command
from glioma_dist.files import write_json_atomically
from glioma_dist.scale.planner import Level
from glioma_dist.size import Size
from glioma_dist.training.loop import train
from glioma_dist.training.trainer import Trainer

Engine = Literal["single", "ddp", "fsdp2", "spatial"]


@dataclass(frozen=True)
class ScalingCell:
    """What one launch measures."""

    engine: Engine
    num_gpus: int
    size: str
    encoder: str
    level: Level
    precision: str
    images: int
    """Images in a step, over all GPUs together."""
    repeats: int
    warm_up: int
    workers: int

    def config(self, shards: str, out: Path) -> TrainConfig:
        """The training that is measured."""
        steps = self.warm_up + self.repeats
        return TrainConfig(
            data=DataConfig(
                train=shards,
                size=Size.parse(self.size),
                transform="random-resized-crop",
                augment=("flips", "sharpen", "contrast"),
                workers=self.workers,
            ),
            model=ModelConfig(encoder=self.encoder),
            scale=ScaleConfig(
                activation_checkpointing=self.level,
                spatial_parallel=self.num_gpus if self.engine == "spatial" else 1,
            ),
            batch_size=self.images,
            max_steps=steps,
            eval_every=steps,
            epochs=steps,
            out=out,
        )


class Clock:
    """Start and end of each step after the warm-up, whose last step starts the clock, so that waiting for the first
    batch that is timed counts as for the others. A step ends when the device has finished it."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self.begins: list[float] = []
        self.ends: list[float] = []
        self._start = math.nan
        self.numerics: dict[str, Any] = {}
        """How a GPU rounds and adds in the steps (`numerics_in_force`)."""

    def watch(self, take_step: Callable[[], Any], _: Trainer, number: int) -> Any:
        """Stand before a step (see `watched_steps`)."""
        self.numerics = self.numerics or numerics_in_force()
        begin = time.perf_counter()
        result = take_step()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        end = time.perf_counter()
        if number >= self._warm_up:
            self._start = begin if math.isnan(self._start) else self._start
            self.begins.append(begin)
            self.ends.append(end)
        else:
            self._start = end
        return result

    @property
    def seconds(self) -> float:
        """Seconds from the end of the warm-up to the end of the last step; without a warm-up, from the start of the
        first step."""
        return self.ends[-1] - self._start

    @property
    def seconds_between(self) -> float:
        """Part of `seconds` that lies between steps: waiting for data."""
        return self.seconds - sum(end - begin for begin, end in zip(self.begins, self.ends, strict=True))


def main() -> None:
    """Train the cell of the first argument on the shards of the second. Each process writes its measurements into the
    folder of the third argument."""
    cell, shards, folder = ScalingCell(**json.loads(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
    on_cpu = os.environ.get(USE_CPU, "false") == "true"
    # `train` joins the launch itself, because it forks its workers before.
    memory, clock = PeakMemory(torch.device("cpu" if on_cpu else "cuda")), Clock(cell.warm_up)
    with watched_steps(clock.watch):
        train(cell.config(shards, folder / "run"))
    found = {"seconds": clock.seconds, "seconds_between": clock.seconds_between, "num_steps": len(clock.ends)}
    found |= {"peak_gib": memory.allocated(), "peak_reserved_gib": memory.reserved(), "numerics": clock.numerics}
    write_json_atomically(folder / f"{os.environ['RANK']}.json", found)


if __name__ == "__main__":
    run_command(main)
