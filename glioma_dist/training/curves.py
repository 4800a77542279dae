"""curves.png: the training curves in the run's folder, drawn after validations."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.files import write_atomically
from glioma_dist.training.background import BackgroundCalls

CURVES = "curves.png"
SECONDS_BETWEEN = 60.0
"""At least, from one drawing to the next: one takes 0.15 CPU seconds, and the first 0.4 more."""
SECONDS_AT_END, SECONDS_AT_STOP = 60.0, 3.0
"""How long a run that has finished waits for its last drawing, and one that was stopped or failed."""


class _Scores:
    """Steps with their loss and Dice, 24 bytes a step."""

    def __init__(self) -> None:
        self.columns = (array("q"), array("d"), array("d"))

    def add(self, step: int, loss: float, dice: float) -> None:
        for column, value in zip(self.columns, (step, float(loss), float(dice)), strict=True):
            column.append(value)

    def copy(self) -> tuple[np.ndarray, ...]:
        return tuple(np.array(column) for column in self.columns)


class CurvesFile:
    """Draws <out>/curves.png in a thread, so that no step waits for it: after a validation, at most once a minute, and
    when the run finishes. Nothing is raised; a failure is one warning.

    rows: of metrics.jsonl, from earlier starts. check: called before each write; raises InputError where the run may
    not write any more. say: prints the warning.
    """

    def __init__(
        self, out: Path, rows: Iterable[Mapping[str, Any]], check: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._out, self._check, self._say = out, check, say
        self._calls = BackgroundCalls("curves")
        self._train, self._val = _Scores(), _Scores()
        self._last = time.monotonic()
        self._newest: tuple[tuple[np.ndarray, ...], ...] = ()
        for row in rows:
            with suppress(KeyError, TypeError, ValueError, OverflowError):  # a row of somebody else's making
                (self._val if row.get("split") == "val" else self._train).add(row["step"], row["loss"], row["dice"])
        # A start that was killed may have drawn none of its validations.
        self._is_drawn = (out / CURVES).exists() or not self._val.columns[0]

    def step(self, step: int, loss: float, dice: float) -> None:
        """A step is finished."""
        self._train.add(step, loss, dice)

    def validated(self, step: int, loss: float, dice: float) -> None:
        """A validation is finished: draw the curves, from the second step on."""
        self._val.add(step, loss, dice)
        self._is_drawn = False
        if time.monotonic() - self._last >= SECONDS_BETWEEN:
            self._begin_to_draw()
        self._tell()

    def _begin_to_draw(self) -> None:
        if len(self._train.columns[0]) > 1:
            self._newest = (self._train.copy(), self._val.copy())
            self._last, self._is_drawn = time.monotonic(), True
            self._calls.submit(self._draw)

    def close(self, has_finished: bool) -> None:
        """Draw what is not drawn yet, if the run has finished. Waits a bounded time."""
        if has_finished and not self._is_drawn:
            self._begin_to_draw()
        self._calls.end()
        self._calls.wait(SECONDS_AT_END if has_finished else SECONDS_AT_STOP)
        if has_finished:  # one that stops has no time for it, and draws again when it is resumed
            self._tell()

    def draw_again(self) -> None:
        """Draw the curves of a run that was over before, and wait for that a bounded time."""
        self._is_drawn = not self._val.columns[0]
        self.close(has_finished=True)

    def _draw(self) -> None:
        train, val = self._newest
        # It would print a warning where it first looks for the system's fonts.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        from glioma_dist.report.curves import Curve, draw_curves  # here, because matplotlib takes half a second
        from glioma_dist.report.style import png_bytes

        content = png_bytes(draw_curves(Curve(*train), Curve(*val), self._out.resolve().name))
        self._check()
        write_atomically(self._out / CURVES, content)

    def _tell(self) -> None:
        problem = self._calls.take_problem()
        if problem is not None:
            self._say(f"{self._out / CURVES}: {problem}; no curves are drawn any more, and the run is not affected")
