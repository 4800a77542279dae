"""Whether the loss moves: an equivalence test on the losses of the first steps, so that noise is no movement, and a
noisy start is no standstill; and the losses of two validations, which have no noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

FEWEST_STEPS, MOST_STEPS = 64, 1024
"""The loss is looked at after the first epoch, but not before the first and not after the second of these."""
MOST_LOOKS = 5
"""If it is not sure by then, it is looked at again after twice as many steps, and so on."""
STANDSTILL = 0.02
"""Share of the loss: less than this, in the whole interval of the change, is a standstill."""
DEVIATIONS, DEVIATIONS_TO_MOVE = 2.0, 4.0
"""Half of the interval of the change, in standard errors; and how many of them a change has to have that is none of
chance in any of several looks."""
VALIDATION_STANDSTILL = 0.001
"""The same between two validations, at least `FEWEST_STEPS` apart, while the losses of the steps do not move either."""
GOOD_DICE = 0.7
"""A run from the weights of another run that begins with this has no need to move."""
LARGEST = 1e100
"""Losses are fp32, whose largest number is 3e38."""
WHAT_TO_DO = (
    "is --lr too small, or do the masks belong to other images? glioma-dist shards inspect --sheet sheet.png draws them"
)


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
        self._validations: list[tuple[int, float]] = []
        self._next = max(FEWEST_STEPS, min(steps_per_epoch, MOST_STEPS))
        self._num_looks = 0
        for row in rows:
            if all(_is_score(row.get(name)) for name in ("loss", "dice")):
                add = self.add if row.get("split") is None else self.add_validation
                add(row["step"], row["loss"], row["dice"])

    @property
    def is_sure(self) -> bool:
        """Whether nothing more is looked at."""
        return self._num_looks >= MOST_LOOKS

    def add(self, step: int, loss: float, dice: float) -> str | None:
        """Note the loss and Dice of a step. Returns what to warn of, once."""
        if self.is_sure or step <= self._first_step:
            return None
        self._losses.append(loss)
        self._dice.append(dice)
        if len(self._losses) < self._next:
            return None
        self._next *= 2
        self._num_looks += 1
        first, last, error = self._quarters()
        change = abs(first - last)
        stands_still = change + DEVIATIONS * error < STANDSTILL * max(abs(first), 1e-12)
        num_steps, is_good = len(self._losses), self._is_good()
        if stands_still or change > DEVIATIONS_TO_MOVE * error:
            self._end()
        if not stands_still or is_good:
            return None
        return (
            f"the loss has not moved in {num_steps} steps: {first:.4g} in the first quarter of them, {last:.4g} in the "
            f"last; {WHAT_TO_DO}"
        )

    def add_validation(self, step: int, loss: float, dice: float) -> str | None:
        """Note the loss and Dice of a validation. Returns what to warn of, once."""
        if self.is_sure or step <= self._first_step:
            return None
        earlier = next((each for each in reversed(self._validations) if step - each[0] >= FEWEST_STEPS), None)
        self._validations.append((step, loss))
        if earlier is None or len(self._losses) < FEWEST_STEPS:
            return None
        first, last, error = self._quarters()
        if abs(first - last) > DEVIATIONS * error or abs(loss - earlier[1]) >= VALIDATION_STANDSTILL * abs(earlier[1]):
            return None
        is_good = self._is_trained and dice >= GOOD_DICE
        self._end()
        if is_good:
            return None
        return (
            f"the validation loss has not moved: {earlier[1]:.6g} after step {earlier[0]}, {loss:.6g} after step "
            f"{step}; {WHAT_TO_DO}"
        )

    def _quarters(self) -> tuple[float, float, float]:
        """Mean of the first quarter of the losses, of the last, and the standard error of the difference (Welch's)."""
        quarter = len(self._losses) // 4
        first, last = self._losses[:quarter], self._losses[-quarter:]
        variances = statistics.variance(first) / quarter, statistics.variance(last) / quarter
        return statistics.fmean(first), statistics.fmean(last), math.sqrt(sum(variances))

    def _is_good(self) -> bool:
        return self._is_trained and statistics.fmean(self._dice[-(len(self._dice) // 4) :]) >= GOOD_DICE

    def _end(self) -> None:
        self._num_looks = MOST_LOOKS
        self._losses, self._dice, self._validations = [], [], []


def _is_score(value: object) -> bool:
    """Whether a value of metrics.jsonl, which people can change, is a number that can be squared."""
    return isinstance(value, int | float) and abs(value) < LARGEST
