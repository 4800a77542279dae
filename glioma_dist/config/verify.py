"""The flags of `glioma-dist verify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from glioma_dist.config.paths import LocalPath, PathOrUrl
from glioma_dist.errors import InputError
from glioma_dist.limits import check_seed


@dataclass(frozen=True)
class VerifyConfig:
    """Compute random stretches of a training run again, and compare batches, losses and weights."""

    run: Annotated[LocalPath, tyro.conf.Positional]
    """Folder of the run: the --out of a training with --keep-every."""
    stretches: int = 3
    """Number of stretches to compute again, each from one kept checkpoint to the next."""
    seed: int = 0
    """Random seed that draws the stretches."""
    train: tuple[PathOrUrl, ...] = ()
    """Folders or URLs of the training data, if they have moved. By default: those of the run."""
    loss: str | None = None
    """Repeat the run's --loss here if it names your own function as MODULE:FUNCTION: no code that only a file names is
    run."""
    tolerance: float = 0.05
    """Largest relative difference of a loss where bits cannot be asked for: on other hardware, with other versions or
    another number of processes."""

    def validate(self) -> None:
        if self.stretches < 1:
            raise InputError(f"--stretches {self.stretches}: give 1 or more")
        check_seed("--seed", self.seed)
        if not 0 < self.tolerance < 1:
            raise InputError(f"--tolerance {self.tolerance}: give a number between 0 and 1, for example 0.05")
