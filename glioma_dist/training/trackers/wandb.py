"""Weights & Biases: a server, or with WANDB_MODE=offline files in the run's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from glioma_dist.training.trackers.contract import TrackedRun, Tracker
from glioma_dist.training.trackers.from_accelerate import AccelerateTracker
from glioma_dist.training.trackers.names import PROJECT


class WandB(AccelerateTracker):
    """A run of wandb. WANDB_PROJECT, WANDB_ENTITY and wandb's other variables apply."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        # wandb would take over standard output, and would ask for a key where nobody can answer.
        settings = wandb.Settings(console="off", login_timeout=1)
        super().__init__(
            "wandb",
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            dir=str(run.folder),
            id=run.run_id,
            resume="allow",
            settings=settings,
        )
        self.run_id = self.inner.tracker.id

    def log_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        self.inner.log_images({name: [image] for name, image in images.items()}, step=step)


def open_wandb(run: TrackedRun) -> Tracker:
    return WandB(run)
