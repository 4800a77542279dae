"""The experiment trackers by name, and what they leave in a run's folder. No torch, and no tracker's library."""

from glioma_dist.registry import TrackerEntry

FOLDER = "trackers"
"""Folder in the run's folder for the files of trackers that write to this machine."""
IDS = "trackers.json"
"""File in the run's folder: for each tracker the id of its run, which a resumed run continues."""
TRACKED = (FOLDER, IDS)
PROJECT = "glioma-dist"
"""The project, or experiment, that runs belong to, where the tracker's own variable names no other."""

_HERE = "glioma_dist.training.trackers"
_BY_NAME = f"{_HERE}.from_accelerate:open_by_name"

DECLARED = (
    TrackerEntry("tensorboard", f"{_HERE}.tensorboard:open_tensorboard", library="tensorboard"),
    TrackerEntry("wandb", f"{_HERE}.wandb:open_wandb", library="wandb"),
    TrackerEntry("mlflow", f"{_HERE}.mlflow:open_mlflow", library="mlflow"),
    TrackerEntry("trackio", f"{_HERE}.trackio:open_trackio", library="trackio"),
    TrackerEntry("clearml", _BY_NAME, library="clearml", package="clearml"),
    TrackerEntry("comet_ml", _BY_NAME, library="comet_ml", package="comet-ml"),
    TrackerEntry("dvclive", _BY_NAME, library="dvclive", package="dvclive"),
    TrackerEntry("swanlab", _BY_NAME, library="swanlab", package="swanlab"),
)
