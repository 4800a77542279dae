"""Trackio: a local database, or a Space on the Hugging Face hub (TRACKIO_SPACE_ID)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from uuid import uuid4

import numpy as np

from glioma_dist.training.trackers.contract import TrackedRun, Tracker
from glioma_dist.training.trackers.from_accelerate import AccelerateTracker
from glioma_dist.training.trackers.names import PROJECT


class Trackio(AccelerateTracker):
    """A run of trackio, which knows runs by their names. TRACKIO_PROJECT names the project."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._image = trackio.Image
        # Runs of other folders can have the same name.
        self.run_id = run.run_id or f"{run.name}-{uuid4().hex[:8]}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        super().__init__("trackio", project, name=self.run_id, resume="allow" if run.run_id else "never")

    def log_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        self.inner.log({name: self._image(image) for name, image in images.items()}, step=step)


def open_trackio(run: TrackedRun) -> Tracker:
    return Trackio(run)
