"""Runs of the commands, one after the other: those that are finished are left alone, and one that was stopped
resumes where it was."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import differences, from_dict, to_dict
from glioma_dist.distributed.children import run_child
from glioma_dist.distributed.launched import USE_CPU, without_launch
from glioma_dist.errors import InputError
from glioma_dist.files import read_json, write_json_atomically
from glioma_dist.model.checkpoint import kept_folders
from glioma_dist.reproduction.folder import held_run
from glioma_dist.reproduction.plan import Job

Launch = Callable[[str, Path, Path], int]
"""Runs a command (its name, its config, a file for what it says) and returns its exit code."""
FAILED = ".failed.json"
MOST_NAMED = 3


def launcher(launch_file: Path) -> Launch:
    """By `accelerate launch`, with one of accelerate_configs/. Its processes end when this one does."""

    def launch(name: str, config: Path, log: Path) -> int:
        environment = without_launch(os.environ, keep=(USE_CPU,))
        start = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(launch_file)]
        command = [*start, "-m", "glioma_dist", name, "--config", str(config)]
        with log.open("a") as file:
            return run_child(command, environment, file)

    return launch


def command_of(job: Job, launch_file: Path) -> str:
    """What repeats a run by hand, in the folder that the study was started in."""
    launch = ["accelerate", "launch", "--quiet", "--config_file", str(launch_file), "-m", "glioma_dist"]
    return shlex.join([*launch, job.command, "--config", str(job.config_file)])


def execute(
    jobs: Sequence[Job], launch: Launch, metadata: dict[str, Any], say: Callable[[str], None] = print
) -> list[Job]:
    """Run what is not finished. A run that fails stops none but those that need it. A run that another start of the
    study is making is left to that start, with those that need it. Returns those that did not end well, which say why
    in `failure`.

    metadata: of this machine, kept with each run.
    """
    failed: list[Job] = []
    left: set[Path] = set()
    """Folders of the trainings that are left to another start."""
    trainings = {job.folder: job for job in jobs if job.command == "train"}
    for number, job in enumerate(jobs, 1):
        if is_finished(job):
            continue
        missing = [folder for folder in job.needs if folder in trainings and not is_finished(trainings[folder])]
        if left & set(missing):
            left.add(job.folder)
            continue
        if missing:
            note_failure(job, f"{missing[0]} did not end well")
            failed.append(job)
            continue
        with held_run(job.folder) as is_ours:
            if not is_ours:
                left.add(job.folder)
                say(f"run {number} of {len(jobs)}: another start of this study is making {job.folder}")
            elif not is_finished(job):  # another start can have finished it meanwhile
                say(f"run {number} of {len(jobs)}: {job.command} {job.config_file}")
                if not _run_and_say(job, launch, metadata, say):
                    failed.append(job)
    return failed


def _run_and_say(job: Job, launch: Launch, metadata: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Whether the run ended well."""
    seconds = run_one(job, launch, metadata)
    say(f"  did not end well: {failure(job)}" if seconds is None else f"  {seconds:.0f} s")
    return seconds is not None


def describe_missing(jobs: Sequence[Job]) -> str | None:
    """A line that says which runs of a study are not finished; None where all are."""
    missing = [job for job in jobs if not is_finished(job)]
    if not missing:
        return None
    names = ", ".join(str(job.config_file) for job in missing[:MOST_NAMED])
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    return f"{len(missing)} of {len(jobs)} runs are not finished: {names}{more}"


def run_one(job: Job, launch: Launch, metadata: dict[str, Any]) -> float | None:
    """Run a job and write down what it took: seconds of all its starts together; None where it failed."""
    job.folder.mkdir(parents=True, exist_ok=True)
    write_config(job)
    failed_file(job).unlink(missing_ok=True)
    said_before = job.log.stat().st_size if job.log.exists() else 0
    times, start = job.folder / f"{job.stem}.seconds.json", time.monotonic()
    before = _read_seconds(times) if times.exists() else 0.0
    try:
        code = launch(job.command, job.config_file, job.log)
    finally:
        seconds = before + time.monotonic() - start
        write_json_atomically(times, seconds)
    if code == 0:
        # The marker first: a training that has lost last/ and is not marked as finished would be refused.
        write_json_atomically(job.marker, {"seconds": round(seconds, 1), **metadata})
        if job.command == "train":
            for folder in kept_folders(job.folder / "run" / "last"):  # nobody resumes from them any more
                shutil.rmtree(folder, ignore_errors=True)
        return seconds
    with job.log.open("rb") as file:
        file.seek(said_before)
        lines = file.read().decode(errors="replace").splitlines()
    # The launcher prints a report of its own below the entry point's line.
    reason = next((line for line in reversed(lines) if line.startswith("error:")), f"exit code {code}, see {job.log}")
    note_failure(job, reason.removeprefix("error: "))
    return None


def write_config(job: Job) -> None:
    """A training that was begun resumes with what costs only, such as the number of workers, as it is asked for now.

    Raises InputError where it was begun with settings that decide numbers and are others now.
    """
    if job.command == "train" and job.config_file.exists():
        before = read_json(job.config_file)
        try:
            # As a resumed training reads it: settings that a newer version has and the file has not are the defaults.
            before = to_dict(from_dict(TrainConfig, before, str(job.config_file)))
        except InputError as error:
            raise InputError(f"{error}; remove the folder {job.folder} to train again") from None
        changed = differences(before, json.loads(json.dumps(job.config)))
        if changed:
            raise InputError(
                f"{job.config_file}: was made with other settings than this command has ({'; '.join(changed)}); give "
                "the same settings, or another --out"
            )
    write_json_atomically(job.config_file, job.config)


def is_finished(job: Job) -> bool:
    return job.marker.is_file()


def failed_file(job: Job) -> Path:
    return job.folder / f"{job.stem}{FAILED}"


def note_failure(job: Job, reason: str) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json_atomically(failed_file(job), {"reason": reason})


def failure(job: Job) -> str | None:
    """Why a run did not end well the last time; None where it is finished or was never started."""
    if is_finished(job) or not failed_file(job).exists():
        return None
    content = read_json(failed_file(job))
    return str(content.get("reason")) if isinstance(content, dict) else f"{failed_file(job)} is damaged"


def _read_seconds(path: Path) -> float:
    """Raises InputError where the file holds anything but a number."""
    seconds = read_json(path)
    if type(seconds) not in (int, float) or not 0 <= seconds < 1e12:
        raise InputError(f"{path}: is no number of seconds; remove the file to count from zero")
    return float(seconds)
