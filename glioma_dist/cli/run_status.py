"""`glioma-dist run-status`: how a run stands, for people and for job scripts."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_folder_there
from glioma_dist.config.paths import PathOrUrl
from glioma_dist.data.shards.storage import open_folder
from glioma_dist.data.shards.urls import is_url
from glioma_dist.distributed.exit_codes import code_of_launch, read_exit_codes
from glioma_dist.errors import ExitCode, InputError, one_line
from glioma_dist.files import parse_json, read_json
from glioma_dist.training.folder_lock import is_held
from glioma_dist.training.run_warnings import is_warning
from glioma_dist.training.status import MAX_STATUS_BYTES, STATUS

NOTHING, AGAIN, FIX = "nothing", "run again", "fix"
CODES_TO_RUN_AGAIN = (ExitCode.STOPPED, ExitCode.UNAVAILABLE)
"""A scheduler starts the same command again. It gives up at every other code but 0."""
WORDS = {
    NOTHING: "all work is done",
    AGAIN: "run the same command again",
    FIX: "fix what the line above names, then run the same command again",
}
REASON_OF_RUNNING = "the process was killed, or it still runs where no lock is seen"


@dataclass(frozen=True)
class RunStatusConfig:
    """Print how a training run stands, and what to do next. Reads status.json in the run's folder."""

    run: Annotated[PathOrUrl, tyro.conf.Positional]
    """Folder or URL of the run: the --out of its training."""
    exit: bool = False
    """End with the exit code of the run, so that a job script or a container can pass it on: 0 finished, 75 or 69 run
    the same command again, 2, 3, 4 or 1 do not."""
    json: bool = False
    """Print one JSON object instead of lines."""
    exit_codes: Path | None = None
    """Folder that GLIOMA_DIST_EXIT_CODES named when the training was launched. With it, a start that ended before the
    run began counts, too: a mistyped flag, a machine that did not join. Without it, the status is that of the start
    before."""


@dataclass(frozen=True)
class RunStatus:
    """How a run stands. `code`: what `--exit` ends with; `next`: nothing, run again or fix."""

    run: str
    state: str
    code: int
    next: str
    reason: str | None
    step: int | None
    checkpoint_step: int | None
    updated: str | None
    warnings: list[str] = field(default_factory=list)
    """Texts of what the run has warned of."""


def read_status(run: str) -> dict[str, Any] | None:
    """Return the content of the status.json of a run, or None where the run has not begun.

    Raises InputError where it cannot be read, or is no such file.
    """
    path = f"{run.rstrip('/')}/{STATUS}"
    if is_url(run):
        data = open_folder(run).read_optional(STATUS, MAX_STATUS_BYTES)
        content = None if data is None else parse_json(data, path)
    else:
        content = read_json(Path(path), MAX_STATUS_BYTES) if Path(path).exists() else None
    if content is None:
        return None
    if not _is_status(content):
        raise InputError(f"{path}: is no status of a run; start the run again, which writes it")
    return content


def _is_status(content: object) -> bool:
    """Whether a value is what a run writes, because people can change the file."""
    if not isinstance(content, dict):
        return False
    state, code = content.get("state"), content.get("code")
    has_ended = state in ("finished", "stopped", "failed") and type(code) is int and 0 <= code <= 255
    steps = (content.get(name) for name in ("step", "checkpoint_step"))
    texts = (content.get(name) for name in ("reason", "updated"))
    return (
        (has_ended or (state == "running" and code is None))
        and all(each is None or type(each) is int for each in steps)
        and all(each is None or isinstance(each, str) for each in texts)
    )


def find_status(run: str, exit_codes: Path | None) -> RunStatus:
    """Return how a run stands, from its status.json and from the exit codes of its last launch, if they were noted.

    Raises InputError where there is neither.
    """
    told = read_status(run)
    codes = None if exit_codes is None else read_exit_codes(exit_codes)
    if told is None and codes is None:
        raise InputError(f"RUN {run}: has no {STATUS}: no training has begun there; give the --out of a training")
    told = told or {"state": "not begun"}
    state, code, reason = told["state"], told.get("code"), told.get("reason")
    if state == "running":
        is_running = not is_url(run) and is_held(Path(run))
        code = ExitCode.UNAVAILABLE if is_running else ExitCode.STOPPED
        state, reason = ("running", None) if is_running else ("killed", REASON_OF_RUNNING)
    if codes is not None and state != "running":
        state, code, reason = _of_last_launch(state, code, reason, codes)
    step, checkpoint_step, updated = (told.get(name) for name in ("step", "checkpoint_step", "updated"))
    warnings = told.get("warnings")
    texts = [entry["text"] for entry in warnings if is_warning(entry)] if isinstance(warnings, list) else []
    return RunStatus(run, state, int(code), _what_next(code), reason, step, checkpoint_step, updated, texts)


def _what_next(code: int) -> str:
    return AGAIN if code in CODES_TO_RUN_AGAIN else NOTHING if code == ExitCode.FINISHED else FIX


def _of_last_launch(
    state: str, code: int | None, reason: str | None, codes: dict[int, int | None]
) -> tuple[str, int, str | None]:
    """State, code and reason of a run, given those of its status.json and the exit codes of its last launch.

    A finished run stays finished unless its last start was refused.
    """
    launch = code_of_launch(codes) if codes else ExitCode.UNAVAILABLE
    if state == "finished" and launch in (ExitCode.FINISHED, *CODES_TO_RUN_AGAIN):
        return state, ExitCode.FINISHED, None
    if not codes:
        return "not begun", launch, "no process of the launch began; the launcher's output says why"
    if launch == ExitCode.FINISHED:
        told = f"the launch ended with 0, but RUN has no {STATUS} of a finished run; give the training's --out"
        return "failed", ExitCode.USER_ERROR, told
    if launch == ExitCode.STOPPED:
        killed = [rank for rank, each in codes.items() if each is None]
        if killed:
            return "killed", launch, f"process {min(killed)} was killed"
        return "stopped", launch, reason if state == "stopped" else "stopped before the run resumed"
    if launch == code:
        return state, launch, reason
    ranks = ", ".join(str(rank) for rank, each in sorted(codes.items()) if each == launch)
    return "failed", launch, f"process {ranks} ended with {launch}; its error: line says why"


def run(config: RunStatusConfig) -> None:
    """Print the status; with --exit, end with its code."""
    status = find_status(config.run, config.exit_codes)
    if config.json:
        print(json.dumps(asdict(status)))
    else:
        line = f"{status.run}: {status.state}, exit code {status.code}"
        print(one_line(f"{line}: {status.reason}" if status.reason else line))
        if status.step is not None:
            resumes = (
                "no checkpoint" if status.checkpoint_step is None else f"checkpoint at step {status.checkpoint_step}"
            )
            print(one_line(f"step {status.step}, {resumes}, as of {status.updated}"))
        for text in status.warnings:
            print(one_line(f"warning: {text}"))
        print(f"next: {'wait until it ends' if status.state == 'running' else WORDS[status.next]}")
    if config.exit and status.code:
        sys.stdout.flush()
        sys.exit(status.code)


def check(config: RunStatusConfig) -> None:
    """Raises InputError where the folder of exit codes is not there."""
    if config.exit_codes is not None:
        check_folder_there("--exit-codes", config.exit_codes)


RUN_STATUS = Command(
    RunStatusConfig,
    run,
    (
        "glioma-dist run-status runs/glioma",
        "glioma-dist run-status runs/glioma --json",
        "glioma-dist run-status runs/glioma --exit-codes runs/glioma.codes --exit",
    ),
    check,
)
