"""What a training run leaves behind, for the Python code that called it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from glioma_dist.training.state import TrainState


@dataclass(frozen=True)
class TrainResult:
    """A finished training run."""

    out: Path
    """The run's folder: config.json, run.json, metrics.jsonl, status.json, last/, best/."""
    step: int
    """Optimizer steps taken, over all starts of the run."""
    last: Path
    """The last checkpoint, with the optimizer's state."""
    best: Path
    """The checkpoint to use the model from: that with the lowest validation loss; without validation `last`."""
    best_loss: float | None
    """Validation loss of `best`: the mean over the validation images; None without validation."""
    best_dice: float | None
    """Validation Dice of `best`, from 0 to 1: the mean over the validation images; None without validation."""

    @classmethod
    def of(cls, out: Path, position: TrainState) -> TrainResult:
        """The result of the run in `out` that ended at `position`."""
        last = out / "last"
        if position.best_loss == math.inf:
            return cls(out, position.step, last, last, None, None)
        return cls(out, position.step, last, out / "best", position.best_loss, position.best_dice)
