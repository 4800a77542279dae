"""The trackers of accelerate: `accelerate.tracking` has a class for each, which speaks to the tracker's library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import tracking

from glioma_dist.training.trackers.contract import Setting, TrackedRun, Tracker
from glioma_dist.training.trackers.names import PROJECT


class AccelerateTracker(Tracker):
    """A tracker of accelerate, started.

    kind: accelerate's name. arguments, settings: of its class. The class is used without `Accelerator(log_with=…)`, so
    that one tracker can fail without the others.
    """

    def __init__(self, kind: str, *arguments: Any, **settings: Any) -> None:
        self.inner = tracking.LOGGER_TYPE_TO_CLASS[kind](*arguments, **settings)
        self.inner.start()

    def store_config(self, config: Mapping[str, Setting]) -> None:
        self.inner.store_init_configuration(dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.inner.log(dict(values), step=step)

    def finish(self) -> None:
        self.inner.finish()


def open_by_name(run: TrackedRun) -> Tracker:
    """Open a tracker that accelerate knows by the registry's name. It gets settings and numbers, and no images."""
    kind = tracking.LOGGER_TYPE_TO_CLASS[run.tracker]
    folder = {}
    if kind.requires_logging_directory:
        run.folder.mkdir(parents=True, exist_ok=True)
        folder = {"logging_dir": run.folder}
    return AccelerateTracker(run.tracker, PROJECT, **folder)
