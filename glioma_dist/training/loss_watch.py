"""Whether the loss moves: an equivalence test on the losses of the first steps, so that noise is no movement, and a
noisy start is no standstill."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FEWEST_STEPS, MOST_STEPS = 64, 1024
"""The loss is looked at after the first epoch, but not before the first and not after the second of these."""
MOST_LOOKS = 5
"""If it is not sure by then, it is looked at again after twice as many steps, and so on."""
STANDSTILL = 0.03
"""Share of the loss: less than this, in the whole interval of the change, is a standstill."""
DEVIATIONS = 2.0
"""Half of the interval of the change, in standard errors."""
GOOD_DICE = 0.7
"""A run from the weights of another run that begins with this has no need to move."""


class LossWatch:
    """Looks at the losses of a run, from step `first_step` on, until it is sure that they move, or that they do not.

    Args:
        steps_per_epoch: of the run.
        rows: of metrics.jsonl, of earlier starts.
        is_trained: whether the run starts from the weights of another run.
        first_step: steps before it do not count, as those of a warm-up.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        rows: Iterable[Mapping[str, Any]] = (),
        is_trained: bool = False,
        first_step: int = 0,
    ) -> None:
        self._is_trained, self._first_step = is_trained, first_step
        self._losses: list[float] = []
        self._dice: list[float] = []
        self._next = max(FEWEST_STEPS, min(steps_per_epoch, MOST_STEPS))
        self._num_looks = 0
        for row in rows:
            if row.get("split") is None and isinstance(row.get("loss"), int | float):
                self.add(row["step"], row["loss"], row["dice"] if isinstance(row.get("dice"), int | float) else 0.0)

    def add(self, step: int, loss: float, dice: float) -> str | None:
        """Note the loss and Dice of a step. Returns what to warn of, once."""
        if self._num_looks >= MOST_LOOKS or step <= self._first_step:
            return None
        self._losses.append(loss)
        self._dice.append(dice)
        if len(self._losses) < self._next:
            return None
        self._next *= 2
        self._num_looks += 1
        quarter = len(self._losses) // 4
        first, last = self._losses[:quarter], self._losses[-quarter:]
        low, high = change_interval(first, last)
        scale = max(abs(statistics.fmean(first)), 1e-12)
        stands_still = max(abs(low), abs(high)) < STANDSTILL * scale
        moves = low > 0 or high < 0
        line = None
        if stands_still and not (self._is_trained and statistics.fmean(self._dice[-quarter:]) >= GOOD_DICE):
            line = (
                f"the loss has not moved in {len(self._losses)} steps: {statistics.fmean(first):.4g} in the first "
                f"quarter of them, {statistics.fmean(last):.4g} in the last; is --lr too small, or do the masks belong "
                "to other images? glioma-dist shards inspect --sheet sheet.png draws them"
            )
        if stands_still or moves or self._num_looks >= MOST_LOOKS:
            self._num_looks = MOST_LOOKS
            self._losses, self._dice = [], []
        return line


def change_interval(first: Sequence[float], last: Sequence[float]) -> tuple[float, float]:
    """Return the interval of the difference of two means, first less last: Welch's standard error, two of it on either
    side."""
    change = statistics.fmean(first) - statistics.fmean(last)
    error = math.sqrt(statistics.variance(first) / len(first) + statistics.variance(last) / len(last))
    return change - DEVIATIONS * error, change + DEVIATIONS * error
