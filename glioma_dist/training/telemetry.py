"""What a run tells people while it trains: a progress line, and how long it waits and will take."""

from __future__ import annotations

import errno
import time
from collections import deque
from datetime import datetime, timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 10
STEPS_IN_RATE = 20
STEPS_BEFORE_ESTIMATE = 5
SECONDS_WORTH_AN_ESTIMATE = 10.0
OF_SPEED = ("images_per_second", "step_seconds", "data_wait_share")
"""Fields of a row of metrics.jsonl that no two runs share."""


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
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self.bar = Progress(*columns, refresh_per_second=4, console=_Console())
        self.task = self.bar.add_task("training", total=num_steps, completed=first_step, figures="")
        self.validation = self.bar.add_task("validation", total=1, figures="", visible=False)
        self.validation_begun: float | None = None

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

    def validating(self, done: int, total: int) -> None:
        """Tell how many images of a validation are done: in a second bar while it lasts, or as lines."""
        now = time.perf_counter()
        if self.validation_begun is None:
            # With the first image it is under way: what it took before is not known, and is soon forgotten.
            self.validation_begun = now
            self.bar.update(self.validation, total=total, figures="", visible=done < total)
        left = (now - self.validation_begun) / max(1, done - 1) * (total - done)
        figures = f"{int(left // 60)}:{int(left % 60):02d} left" if done > 1 else ""
        self.bar.update(self.validation, completed=done, figures=figures)
        is_due = done < total and now - self.last_line >= SECONDS_BETWEEN_LINES
        if not self.bar.console.is_terminal and is_due and figures:
            self.last_line = now
            self.say(f"validation {done}/{total} images  {figures}")
        if done == total:
            self.validation_begun = None
            self.bar.update(self.validation, visible=False)

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
            # Brackets, `:x:` and long names of files are no markup, no emoji, and not to be cut into lines.
            self.bar.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
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
