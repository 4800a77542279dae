"""What a run tells while it trains: metrics.jsonl for programs, a progress line for people."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 10
STEPS_IN_RATE = 20


class MetricsFile:
    """<out>/metrics.jsonl: one JSON object a line, flushed at once."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Rows after `resume_step`, and a last line that was cut short by a kill, are taken out of an old file."""
        rows = [row for row in _whole_rows(path) if row["step"] <= resume_step] if path.exists() else []
        new = path.with_name(path.name + ".new")
        new.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(new, path)
        self._file = path.open("a")

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def write(self, **row: float | int | str) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


class TrainingProgress:
    """A progress bar on a terminal, plain lines elsewhere: loss, Dice, images a second, time left."""

    def __init__(self, first_step: int, num_steps: int, batch_size: int) -> None:
        self.num_steps, self.batch_size = num_steps, batch_size
        self.times = deque([time.perf_counter()], maxlen=STEPS_IN_RATE + 1)
        self.last_line = -float("inf")
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        self.bar = Progress(*columns, refresh_per_second=4)
        self.task = self.bar.add_task("", total=num_steps, completed=first_step, figures="")

    def __enter__(self) -> TrainingProgress:
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    @property
    def images_per_second(self) -> float:
        """Over the last few steps, evaluations and checkpoints between them included."""
        return self.batch_size * (len(self.times) - 1) / max(self.times[-1] - self.times[0], 1e-9)

    def step(self, step: int, loss: float, dice: float) -> None:
        """Tell of a finished step."""
        self.times.append(time.perf_counter())
        left = (self.num_steps - step) * self.batch_size / self.images_per_second
        figures = (
            f"loss {loss:.4f}  Dice {dice:.4f}  {self.images_per_second:.2f} images/s  "
            f"{int(left // 60)}:{int(left % 60):02d} left"
        )
        self.bar.update(self.task, completed=step, figures=figures)
        if not self.bar.console.is_terminal and (
            step == self.num_steps or self.times[-1] - self.last_line >= SECONDS_BETWEEN_LINES
        ):
            self.last_line = self.times[-1]
            self.say(f"step {step}/{self.num_steps}  {figures}")

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.bar.console.is_terminal:
            self.bar.console.print(line)
        else:
            print(line, flush=True)


def _whole_rows(path: Path) -> list[dict]:
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
