"""Sends what a run tells to its trackers, none of which can hold or stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.config.file import to_dict
from glioma_dist.config.paths import without_credentials
from glioma_dist.distributed.leaving import give_up_library
from glioma_dist.errors import InputError
from glioma_dist.files import read_json, write_json_atomically
from glioma_dist.registry import trackers
from glioma_dist.training.background import BackgroundCalls
from glioma_dist.training.trackers.contract import Setting, TrackedRun, Tracker
from glioma_dist.training.trackers.names import FOLDER, IDS

SECONDS_AT_END, SECONDS_AT_STOP = 60.0, 5.0
"""How long a run that has finished waits for its trackers, and one that was stopped or failed."""
MAX_PICTURES_WAITING = 64
"""Calls that may wait where images are to be sent: with more, the images of this validation are omitted."""
MAX_IDS_BYTES = 2**16
Drawing = Callable[[], Mapping[str, np.ndarray]]
"""Returns images by name, uint8 (H, W, 3) RGB."""


class Sender:
    """Sends to one tracker, in a thread of its own: a server may answer late, or never."""

    def __init__(self, name: str, run: TrackedRun, config: Mapping[str, Setting]) -> None:
        self.name = name
        self.run_id = run.run_id
        self._calls = BackgroundCalls(f"tracker {name}")
        self._tracker: Tracker | None = None
        self._calls.submit(lambda: self._open(run, config))

    def _open(self, run: TrackedRun, config: Mapping[str, Setting]) -> None:
        self._tracker = trackers.load(self.name, "--track")(run)
        self.run_id = self._tracker.run_id
        self._tracker.store_config(config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._calls.submit(lambda: self._tracker.log(values, step))

    def log_images(self, drawing: Drawing, step: int) -> None:
        if self._calls.num_waiting <= MAX_PICTURES_WAITING:
            self._calls.submit(lambda: self._tracker.log_images(drawing(), step))

    def finish(self) -> None:
        self._calls.submit(lambda: self._tracker.finish())
        self._calls.end()

    def wait(self, seconds: float, until: float) -> None:
        self._calls.wait(seconds, until)

    def take_problem(self) -> str | None:
        return self._calls.take_problem()


@dataclass(frozen=True)
class Warnings:
    """Where a tracker's failure is told."""

    say: Callable[[str], None]
    """Prints one warning."""
    check: Callable[[], None]
    """Raises InputError where the run's folder may not be written to."""


class Trackers:
    """All trackers of a run, on its first process; none before `open`. No method raises or waits, but for `close`,
    which waits a bounded time."""

    def __init__(self) -> None:
        self._senders: list[Sender] = []

    def open(
        self, names: Sequence[str], out: Path, step: int, config: Mapping[str, Setting], warnings: Warnings
    ) -> None:
        """names: of `--track`. out: the run's folder. step: from which it starts or resumes. config: `flat_config`."""
        self._path, self._warnings = out / IDS, warnings
        self._ids = self._read_ids()
        for each in names:
            name = trackers.canonical(each)
            run = TrackedRun(name, out.resolve().name, out / FOLDER, step, self._ids.get(name))
            self._senders.append(Sender(name, run, config))

    @property
    def are_there(self) -> bool:
        """Whether any tracker still takes values."""
        return bool(self._senders)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers by name."""
        for sender in self._senders:
            sender.log(values, step)
        self._tend()

    def log_images(self, drawing: Drawing, step: int) -> None:
        """Send the images that a function draws in another thread."""
        for sender in self._senders:
            sender.log_images(drawing, step)

    def close(self, has_finished: bool) -> None:
        """Wait until the trackers have all values: all of them together at most a minute, or seconds where the run
        was stopped or failed."""
        seconds = SECONDS_AT_END if has_finished else SECONDS_AT_STOP
        until = time.monotonic() + seconds
        for sender in self._senders:
            sender.finish()
        for sender in self._senders:
            sender.wait(seconds, until)
        if self._senders:
            self._tend()
        self._senders = []

    def _tend(self) -> None:
        """Tell of trackers that failed, and keep the ids of those that are open."""
        ids = self._ids | {each.name: each.run_id for each in self._senders if each.run_id is not None}
        for sender in list(self._senders):
            problem = sender.take_problem()
            if problem is not None:
                self._senders.remove(sender)
                give_up_library()
                self._warnings.say(
                    f"--track {sender.name}: {problem}; nothing more is sent to it, and the run is not affected "
                    "(metrics.jsonl has all values)"
                )
        if ids != self._ids:
            self._ids = ids
            with suppress(InputError):  # a full disk is told of by others
                self._warnings.check()
                write_json_atomically(self._path, ids)

    def _read_ids(self) -> dict[str, str]:
        """The ids of an earlier start."""
        try:
            found: Any = read_json(self._path, MAX_IDS_BYTES) if self._path.exists() else {}
        except InputError as error:
            self._warnings.say(f"{error}; the trackers begin new runs")
            return {}
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            self._warnings.say(f"{self._path}: holds no ids of runs; the trackers begin new runs")
            return {}
        return found


def flat_config(config: Any, start: Mapping[str, Any]) -> dict[str, Setting]:
    """The settings of a run, and what it is computed on, as one value each by dotted name. A tracker can be public, so
    passwords and signatures of URLs are left out.

    start: the entry of the start in run.json.
    """
    flat: dict[str, Setting] = {}

    def add(prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                add(f"{prefix}{name}.", value)
            elif isinstance(value, list | tuple):
                flat[f"{prefix}{name}"] = " ".join(without_credentials(str(each)) for each in value)
            elif isinstance(value, str):  # or of a class of its own, as torch.__version__ is, which YAML cannot write
                flat[f"{prefix}{name}"] = without_credentials(str(value))
            else:
                flat[f"{prefix}{name}"] = "none" if value is None else value

    add("", to_dict(config))
    chosen = ("scale", "engine", "mixed_precision", "system", "host", "versions", "commit")
    add("start.", {name: start[name] for name in chosen if name in start})
    processes = start.get("processes", [])
    add("start.", {"processes": len(processes), "devices": sorted({str(each.get("device")) for each in processes})})
    return flat
