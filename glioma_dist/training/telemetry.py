"""What a run tells while it trains: metrics.jsonl for programs, a progress line for people."""

from __future__ import annotations

import errno
import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from glioma_dist.errors import InputError, one_line
from glioma_dist.files import cannot_write, read_bytes, write_atomically
from glioma_dist.model.checkpoint import MAX_STEP

MAX_METRICS_BYTES = 2**30
MAX_ROW_BYTES = 2**16
SECONDS_BETWEEN_LINES = 10
STEPS_IN_RATE = 20
STEPS_BEFORE_ESTIMATE = 5
SECONDS_WORTH_AN_ESTIMATE = 10.0
CURVES = "curves.png"
DICE_BY_CLASS = "dice_by_class"
"""Of a row of a validation, where there are several classes: Dice by the name of the class."""
OF_SPEED = ("images_per_second", "step_seconds", "data_wait_share")
"""Fields of a row of metrics.jsonl that no two runs share."""


class MetricsFile:
    """<out>/metrics.jsonl: one JSON object a line, written at once."""

    def __init__(
        self,
        path: Path,
        resume_step: int,
        check: Callable[[], None] = lambda: None,
        added: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Rows after `resume_step`, and a last line that a kill cut short, are removed from an old file.

        added: rows that the run before could not write. check: called before each write; it raises InputError where
        the run may not write any more. Raises InputError where the file holds anything but rows, or cannot be written.
        """
        self._path, self._check = path, check
        rows = [row for _, row in read_rows(path)] if path.exists() else []
        rows += [row for row in added if row not in rows]
        self.kept = [row for row in rows if row["step"] <= resume_step]
        """Rows of earlier starts."""
        check()
        write_atomically(path, b"".join(map(_as_line, self.kept)))
        self.unwritten: list[dict[str, Any]] = []
        """Rows that could not be written so far; each write begins with them."""
        self._rest = b""
        try:
            self._file = path.open("ab", buffering=0)  # what could not be written would stay in a buffer
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as failure:  # some network file systems say only now that the disk is full
            if error is None:
                raise cannot_write(self._path, failure) from failure

    def write(self, **row: float | int | str | dict[str, float]) -> None:
        """Append a row, after those that could not be written before. Raises InputError where the disk is full, or the
        file or its folder is gone; `catch_up` then tries again."""
        self.unwritten.append(row)
        self.catch_up()

    def catch_up(self) -> None:
        """Write what could not be written before. Raises as `write`."""
        if not self.unwritten:
            return
        self._check()
        try:
            there = os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            there = False
        if not there:
            raise InputError(f"{self._path}: was removed or replaced while the run was writing to it")
        try:
            while self.unwritten:
                self._rest = self._rest or _as_line(self.unwritten[0])
                while self._rest:
                    self._rest = self._rest[self._file.write(self._rest) :]
                del self.unwritten[0]
        except OSError as error:
            raise cannot_write(self._path, error) from error


class DataWait:
    """How long a process waits for its data: a context around each wait for a batch.

    It reads the clock only, so a GPU continues with what it was given. The first wait, in which the workers read the
    first samples, counts as any other.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self.last = self.longest = self.total = 0.0
        """Seconds of the last wait, of the longest one, and of all together."""

    def __enter__(self) -> DataWait:
        self._entered = time.perf_counter()
        self._began = self._entered if self._began is None else self._began
        return self

    def __exit__(self, *_: object) -> None:
        self.last = time.perf_counter() - self._entered
        self.longest = max(self.longest, self.last)
        self.total += self.last

    @property
    def share(self) -> float:
        """Share of the time since the first wait began, from 0 to 1."""
        return 0.0 if self._began is None else self.total / max(time.perf_counter() - self._began, 1e-9)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would end the process; the run is to save itself first."""
        raise BrokenPipeError(errno.EPIPE, "standard output was closed")


class TrainingProgress:
    """A progress bar on a terminal, plain lines elsewhere: loss, Dice, images a second, time left."""

    def __init__(self, first_step: int, num_steps: int, batch_size: int) -> None:
        self.num_steps, self.batch_size = num_steps, batch_size
        self.first_step, self.begun = first_step, time.perf_counter()
        self.times = deque([self.begun], maxlen=STEPS_IN_RATE + 1)
        self.waits: deque[float] = deque(maxlen=STEPS_IN_RATE)
        self.last_line = -float("inf")
        self.has_validated = False
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        self.bar = Progress(*columns, refresh_per_second=4, console=_Console())
        self.task = self.bar.add_task("", total=num_steps, completed=first_step, figures="")

    def __enter__(self) -> TrainingProgress:
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar.console.is_terminal:
            self.bar.stop()

    @property
    def images_per_second(self) -> float:
        """Over the last few steps, evaluations and checkpoints between them included."""
        return self.batch_size * (len(self.times) - 1) / max(self.times[-1] - self.times[0], 1e-9)

    @property
    def figures(self) -> dict[str, float]:
        """The values of `OF_SPEED`. step_seconds is of the last step, with what lay between it and the one before; the
        others are over the last few steps."""
        passed = max(self.times[-1] - self.times[0], 1e-9)
        last = self.times[-1] - self.times[-2] if len(self.times) > 1 else 0.0
        values = (self.images_per_second, last, min(1.0, sum(self.waits) / passed))
        return dict(zip(OF_SPEED, values, strict=True))

    def step(self, step: int, loss: float, dice: float, waited: float = 0.0) -> None:
        """Tell of a finished step, which waited some seconds for its data."""
        self.times.append(time.perf_counter())
        self.waits.append(waited)
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
        if step - self.first_step == STEPS_BEFORE_ESTIMATE:
            # The first step is slower than all others: libraries choose their kernels in it.
            each = (self.times[-1] - self.times[1]) / (STEPS_BEFORE_ESTIMATE - 1)
            self._estimate(each * (self.num_steps - step), "without validations")

    def validated(self, step: int) -> None:
        """Tell, after the first validation, how long the run will take with those to come."""
        if step - self.first_step >= STEPS_BEFORE_ESTIMATE and not self.has_validated:
            passed = time.perf_counter() - self.begun
            self._estimate(passed / (step - self.first_step) * (self.num_steps - step), "with validations")
        self.has_validated = True

    def _estimate(self, left: float, what: str) -> None:
        if left >= SECONDS_WORTH_AN_ESTIMATE:
            self.say(estimate(left, datetime.now().astimezone(), what))

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.bar.console.is_terminal:
            self.bar.console.print(line)
        else:
            print(line, flush=True)


def estimate(seconds: float, now: datetime, what: str) -> str:
    """The line that says when a run will be done. what: which time is counted."""
    end = now + timedelta(seconds=seconds)
    day = "" if end.date() == now.date() else f"{end:%Y-%m-%d} "
    return f"estimated time {duration(seconds)} ({what}), done about {day}{end:%H:%M %Z}".rstrip()


def duration(seconds: float) -> str:
    """A time in its two largest units: 3 d 4 h, 2 h 10 min, 5 min 20 s, 12 s, 0.4 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def read_rows(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The rows of a metrics file, each as its line and its values; a last line that was cut short is left out.

    Raises InputError naming the line that is no row: no object, without a step, or too long.
    """
    lines = read_bytes(path, MAX_METRICS_BYTES).splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parse_row(line)
        if row is not None:
            rows.append((line, row))
        elif number < len(lines) or line.endswith(b"\n"):
            raise InputError(
                f"{path}: line {number} is no row of metrics ({one_line(line[:40].decode(errors='replace'))}); remove "
                "the line, or move the file away to resume without its rows"
            )
    return rows


def _as_line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()


def is_row(row: object) -> bool:
    """Whether a JSON value is a row of a metrics file."""
    return isinstance(row, dict) and _parse_row(_as_line(row)) is not None


def _is_flat(name: str, value: object) -> bool:
    """Whether a row may have this value: a number or a text, or numbers by the names of classes."""
    if name == DICE_BY_CLASS and isinstance(value, dict):
        return all(isinstance(each, int | float) for each in value.values())
    return not isinstance(value, dict | list)


def _parse_row(line: bytes) -> dict[str, Any] | None:
    """A row of a step or of a validation; None for anything else."""
    try:
        row = json.loads(line) if len(line) <= MAX_ROW_BYTES and line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(_is_flat(*item) for item in row.items()):
        return None
    step = row.get("step")
    return row if type(step) is int and 0 <= step <= MAX_STEP else None
