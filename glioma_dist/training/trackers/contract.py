"""What a tracker is: the contract of the registry's trackers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Setting = bool | int | float | str


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is opened for."""

    tracker: str
    """Name of the tracker in the registry."""
    name: str
    """Name of the run: that of its folder."""
    folder: Path
    """Where the tracker may write files on this machine. It makes the folder itself, if it needs one."""
    step: int
    """The step from which the run starts (0) or resumes."""
    run_id: str | None
    """What `Tracker.run_id` was at an earlier start of this run; None at the first one."""


class Tracker:
    """One run in a tracker. All methods are called in one thread, the one that opened it, on the first process.

    A method may raise anything: the run prints one warning and continues without this tracker. A subclass overrides
    what its tracker can do; a method that it leaves out does nothing.
    """

    run_id: str | None = None
    """What the tracker needs to continue the same run later; None where it needs nothing."""

    def store_config(self, config: Mapping[str, Setting]) -> None:
        """Called once for each start. config: all settings, and what the run was started on, by dotted name."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Called after each step and each validation. values: numbers by name, such as train/loss. Steps can come
        again: a run that was killed repeats those after its last checkpoint."""

    def log_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Called after each validation. images: uint8 (H, W, 3) RGB by name."""

    def finish(self) -> None:
        """Called at the end of this start. The run may be resumed later."""
