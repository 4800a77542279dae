"""How far a prediction is: a bar on a terminal, a line now and then elsewhere, with the time left."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from glioma_dist.wording import short

SECONDS_BETWEEN_LINES = 10.0
IMAGES_IN_RATE = 50
MOST_WITH_A_LINE_EACH = 20
"""More images than these do not get a line each."""


class PredictionProgress:
    """Tells of a process's images; a context manager. total: how many it has; is_quiet: tell nothing."""

    def __init__(self, total: int, is_quiet: bool = False, others: str = "") -> None:
        self._total, self._is_quiet, self._others = total, is_quiet, others
        self._done = self._failed = 0
        self._times = deque([time.monotonic()], maxlen=IMAGES_IN_RATE + 1)
        self._last_line = time.monotonic()
        columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        self._bar = Progress(*columns, refresh_per_second=4, console=Console())
        self._task = self._bar.add_task("", total=total, figures="")
        self._is_shown = self._bar.console.is_terminal and not is_quiet and total > 1

    def __enter__(self) -> PredictionProgress:
        if self._is_shown:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_shown:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line that stays above the bar."""
        if self._is_quiet:
            return
        if self._is_shown:
            self._bar.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def finished(self, line: str | None = None) -> None:
        """Count an image as done. line: printed if there are few images; None: the image failed."""
        self._done += 1
        self._failed += line is None
        now = time.monotonic()
        self._times.append(now)
        each = (now - self._times[0]) / (len(self._times) - 1)
        left = timedelta(seconds=round(each * (self._total - self._done)))
        failed = f", {self._failed} failed" if self._failed else ""
        figures = f"{short(each, 2)} s an image, about {left} left{failed}"
        if line is not None and self._total <= MOST_WITH_A_LINE_EACH:
            self.say(line)
        self._bar.update(self._task, completed=self._done, figures=figures)
        is_due = now - self._last_line >= SECONDS_BETWEEN_LINES and self._done < self._total
        if not self._is_shown and self._total > MOST_WITH_A_LINE_EACH and is_due:
            self._last_line = now
            self.say(f"{self._done} of {self._total} images{self._others}, {figures}")
