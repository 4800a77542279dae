"""MLflow: a server, or files in the run's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from glioma_dist.training.trackers.contract import Setting, TrackedRun, Tracker
from glioma_dist.training.trackers.from_accelerate import AccelerateTracker
from glioma_dist.training.trackers.names import PROJECT


class MLflow(AccelerateTracker):
    """A run of MLflow: at MLFLOW_TRACKING_URI, or in <out>/trackers/mlruns where that is not set."""

    def __init__(self, run: TrackedRun) -> None:
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            run.folder.mkdir(parents=True, exist_ok=True)
            # Recent versions refuse to write plain files unless they are asked to; a database needs more libraries.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((run.folder / "mlruns").resolve().as_uri())
        super().__init__("mlflow", PROJECT, run_id=run.run_id, run_name=run.name)
        self.run_id = self.inner.tracker.info.run_id

    def store_config(self, config: Mapping[str, Setting]) -> None:
        # MLflow refuses another value for a setting that it has; run.json has those of each start.
        known = self.inner.tracker.data.params
        super().store_config({name: value for name, value in config.items() if name not in known})

    def log_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        import mlflow

        for name, image in images.items():
            mlflow.log_image(image, artifact_file=f"{name}/step_{step:08d}.png")


def open_mlflow(run: TrackedRun) -> Tracker:
    return MLflow(run)
