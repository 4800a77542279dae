"""Measures how long training waits for its checkpoints, and what a write under way does to the steps beside it.

The checkpoints lie in the system's folder for temporary files (TMPDIR).

    python benchmarks/saving.py --encoder resnet34
    ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 benchmarks/saving.py --encoder resnet34
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.cli.arguments import parse
from glioma_dist.config import DataConfig, ModelConfig, TrainConfig
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.reader import ShardWriter
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import run_command
from glioma_dist.size import Size, SizeFlag
from glioma_dist.training import loop, saving
from glioma_dist.training.saving import CheckpointSaver


@dataclass(frozen=True)
class SavingConfig:
    """Print a Markdown table with the times of a training that writes checkpoints."""

    encoder: str = "resnet34"
    """The U-Net's encoder."""
    size: SizeFlag = field(default_factory=lambda: Size(64, 64))
    """Image size."""
    steps: int = 24
    """Steps of the training."""
    save_every: int = 8
    """Steps between checkpoints."""

    def validate(self) -> None:
        ModelConfig(encoder=self.encoder).validate()


@dataclass
class Times:
    """Seconds, each as (start, end)."""

    waits: list[tuple[float, float]] = field(default_factory=list)
    """Training in `save`."""
    writes: list[tuple[float, float]] = field(default_factory=list)
    """A thread at the files of a checkpoint."""
    steps: list[tuple[float, float]] = field(default_factory=list)

    def noting(self, kind: str, function: Callable) -> Callable:
        """`function`, whose calls are noted."""

        def noted(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                getattr(self, kind).append((began, time.perf_counter()))

        return noted

    def rows(self) -> dict[str, float]:
        """Medians in milliseconds. The first step, and the first copy, which allocates its memory, are apart."""
        steps = self.steps[1:]
        beside = [step for step in steps if any(step[0] < end and begin < step[1] for begin, end in self.writes)]
        free = [step for step in steps if step not in beside]
        return {
            "training waits for the first checkpoint": _median(self.waits[:1]),
            "training waits for a later checkpoint": _median(self.waits[1:]),
            "the thread writes a checkpoint": _median(self.writes),
            f"a step without a write ({len(free)})": _median(free),
            f"a step beside a write ({len(beside)})": _median(beside),
        }


def _median(spans: list[tuple[float, float]]) -> float:
    return 1000 * statistics.median(end - begin for begin, end in spans) if spans else float("nan")


def draw(folder: Path) -> None:
    """Eight images of noise with a square cell."""
    noise = np.random.default_rng(0)
    with ShardWriter(folder, "noise", "train", "CC0") as writer:
        for number in range(8):
            mask = np.zeros((64, 64), np.uint8)
            mask[16:48, 16:48] = 1
            writer.write(Sample(f"noise-{number}", noise.integers(0, 255, (64, 64), np.uint8), mask, {"num_cells": 1}))


def measure(config: SavingConfig) -> None:
    """Train and print the table on the first process."""
    here, times = DistributedContext.start(), Times()
    with tempfile.TemporaryDirectory() as folder:
        (shared,) = here.gather_objects([folder])[:1]
        if here.is_main:
            draw(Path(folder) / "train")
        here.wait()
        run = TrainConfig(
            data=DataConfig(train=(f"{shared}/train",), size=config.size, workers=0),
            model=ModelConfig(encoder=config.encoder),
            batch_size=2 * here.num_processes,
            max_steps=config.steps,
            eval_every=config.steps,
            save_every=config.save_every,
            out=Path(shared) / "run",
        )
        CheckpointSaver.save = times.noting("waits", CheckpointSaver.save)
        saving._Background._run = times.noting("writes", saving._Background._run)
        loop.train_step = times.noting("steps", loop.train_step)
        loop.train(run, here)
        here.wait()
        if here.is_main:
            files = list((run.out / "last").glob("*.safetensors"))
            mib = sum(path.stat().st_size for path in files) / 2**20
            print(f"{config.encoder}, {here.num_processes} processes ({here.device.type}), checkpoint of {mib:.0f} MiB")
            print("\n| What | Median (ms) |\n|---|---|")
            for name, value in times.rows().items():
                print(f"| {name} | {value:.1f} |")


if __name__ == "__main__":
    run_command(lambda: measure(parse(SavingConfig)))
