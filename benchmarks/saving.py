"""Measures how long training waits for its checkpoints, and what a write under way does to the steps beside it.

The checkpoints lie in the system's folder for temporary files (TMPDIR). On Linux, the time in which a thread is ready
but gets no CPU is left out, so that other programs on the machine change little.

    python benchmarks/saving.py --encoder mit_b2
    ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 benchmarks/saving.py --encoder mit_b2
"""

import statistics
import tempfile
import threading
import time
from collections import defaultdict
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
from glioma_dist.training import in_thread, loop
from glioma_dist.training.saving import CheckpointSaver

SCHEDULER = Path("/proc/thread-self/schedstat")
SAVE, CHANGE, STEP = "save", "let tensors change", "step"
WRITE, COPY = "checkpoint", "copies for checkpoints"
"""Names of threads."""
SHORT_S = 0.01
"""A process that has nothing to write takes less."""


@dataclass(frozen=True)
class SavingConfig:
    """Print a Markdown table with the times of a training that writes checkpoints."""

    encoder: str = "mit_b2"
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
class Span:
    """Something that a thread did, in seconds."""

    begin: float
    end: float
    took: float
    """Without the time in which the thread was ready and got no CPU."""
    waited: float
    """Part of it in which the thread used no CPU: it waited for a disk, another process or another thread of Python."""


@dataclass
class Times:
    """What was done, in order."""

    of: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    """By what it was: SAVE, CHANGE, STEP, or the name of another thread."""

    def noting(self, kind: str | None, function: Callable) -> Callable:
        """`function`, whose calls are noted. kind: of them; by default the thread's name."""

        def noted(*given: Any, **named: Any) -> Any:
            began, delayed, used = time.perf_counter(), seconds_without_cpu(), time.thread_time()
            try:
                return function(*given, **named)
            finally:
                ended = time.perf_counter()
                took = ended - began - (seconds_without_cpu() - delayed)
                span = Span(began, ended, took, took - (time.thread_time() - used))
                self.of[kind or threading.current_thread().name].append(span)

        return noted

    def waits(self) -> list[Span]:
        """Training for each checkpoint: in `save`, and until the copy is there before the next weights change."""
        waits = []
        for save in self.of[SAVE]:
            change = next((each for each in self.of[CHANGE] if each.begin >= save.end), None)
            beside = [save] if change is None else [save, change]
            took, waited = sum(each.took for each in beside), sum(each.waited for each in beside)
            waits.append(Span(save.begin, beside[-1].end, took, waited))
        return waits

    def rows(self) -> dict[str, tuple[float, float]]:
        """Means of `took` and `waited` in ms, without the first step, beside which memory is allocated."""
        writes = [write for write in self.of[WRITE] if write.took > SHORT_S]
        steps, waits = self.of[STEP][1:], self.waits()
        beside = [step for step in steps if any(step.begin < each.end and each.begin < step.end for each in writes)]
        free = [step for step in steps if step not in beside]
        return {
            "training waits for the first checkpoint": _mean(waits[:1]),
            f"training waits for a later checkpoint ({len(waits) - 1})": _mean(waits[1:]),
            f"a thread copies the tensors ({len(self.of[COPY])})": _mean(self.of[COPY]),
            f"a thread writes a checkpoint ({len(writes)})": _mean(writes),
            f"a step without a write ({len(free)})": _mean(free),
            f"a step beside a write ({len(beside)})": _mean(beside),
        }

    def shares(self) -> tuple[float, float]:
        """The waits for the first checkpoint and for a later one (mean), as shares of the time to write one (mean)."""
        first, later, _, write = (took for took, _ in list(self.rows().values())[:4])
        return first / write, later / write


def _mean(spans: list[Span]) -> tuple[float, float]:
    if not spans:
        return float("nan"), float("nan")
    took, waited = ((each.took for each in spans), (each.waited for each in spans))
    return 1000 * statistics.fmean(took), 1000 * statistics.fmean(waited)


def seconds_without_cpu() -> float:
    """Of this thread so far; 0 where the system does not tell."""
    try:
        return int(SCHEDULER.read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


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
        CheckpointSaver.save = times.noting(SAVE, CheckpointSaver.save)
        CheckpointSaver.let_tensors_change = times.noting(CHANGE, CheckpointSaver.let_tensors_change)
        in_thread.InThread._run = times.noting(None, in_thread.InThread._run)
        loop.train_step = times.noting(STEP, loop.train_step)
        loop.train(run, here)
        here.wait()
        if here.is_main:
            files = list((run.out / "last").glob("*.safetensors"))
            mib = sum(path.stat().st_size for path in files) / 2**20
            where = f"{here.num_processes} on {here.device.type}"
            print(f"{config.encoder}, processes: {where}, checkpoint of {mib:.0f} MiB")
            print("\n| What | Mean (ms) | Of it waiting (ms) |\n|---|---|---|")
            for name, (took, waited) in times.rows().items():
                print(f"| {name} | {took:.0f} | {waited:.0f} |")
            first, later = times.shares()
            print(f"\nThe wait, as a share of the write: {100 * first:.1f} % (first), {100 * later:.1f} % (later).")


if __name__ == "__main__":
    run_command(lambda: measure(parse(SavingConfig)))
