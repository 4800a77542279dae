"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from glioma_dist.training.trackers.contract import Setting, TrackedRun, Tracker
from glioma_dist.training.trackers.from_accelerate import AccelerateTracker


class TensorBoard(AccelerateTracker):
    """Writes <out>/trackers/tensorboard."""

    def __init__(self, run: TrackedRun) -> None:
        # Of what an earlier start logged beyond this step, TensorBoard shows nothing.
        super().__init__("tensorboard", "tensorboard", run.folder, purge_step=run.step + 1)
        self.run_id = "tensorboard"
        self._is_new = run.run_id is None

    def store_config(self, config: Mapping[str, Setting]) -> None:
        if self._is_new:  # each call makes a further run in the list of TensorBoard
            super().store_config(config)

    def log_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        for name, image in images.items():
            self.inner.tracker.add_image(name, image, global_step=step, dataformats="HWC")


def open_tensorboard(run: TrackedRun) -> Tracker:
    return TensorBoard(run)
