"""status.json: how a run stands, for schedulers and people that do not see its exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from glioma_dist.errors import ExitCode, InputError, RunError, StopRequested, one_line
from glioma_dist.files import read_json, write_json_atomically

STATUS = "status.json"
MAX_STATUS_BYTES = 2**20
State = Literal["running", "finished", "stopped", "failed"]


def mark_finished(out: Path, step: int) -> bool:
    """Have status.json say that the run is finished, because a kill can come between the last checkpoint and that.

    Returns whether it did not say so before. The run's warnings stay.
    """
    path, before = out / STATUS, None
    with contextlib.suppress(InputError):  # missing, or damaged
        before = read_json(path, MAX_STATUS_BYTES)
    before = before if isinstance(before, dict) else {}
    if before.get("state") == "finished":
        return False
    _write(path, "finished", ExitCode.FINISHED, None, step, step, _warnings_of(before))
    return True


def mark_not_resumed(out: Path, ending: BaseException) -> None:
    """Have the status.json of a run that had stopped, failed or been killed say why it could not be resumed now.

    A folder without one stays without, and a run that is finished stays finished.
    """
    path = out / STATUS
    with contextlib.suppress(InputError):  # damaged, or the disk is full
        before = read_json(path, MAX_STATUS_BYTES)
        if isinstance(before, dict) and before.get("state") in ("running", "stopped", "failed"):
            _write_again(path, ending, before)


def mark_not_uploaded(out: Path, ending: BaseException) -> None:
    """Have status.json say that the run is not complete where it belongs, though it may be finished here."""
    path = out / STATUS
    with contextlib.suppress(InputError):
        before = read_json(path, MAX_STATUS_BYTES)
        if isinstance(before, dict):
            _write_again(path, ending, before)


class StatusFile:
    """Writes <out>/status.json. Launchers turn a process's exit code into their own, this file does not.

    state: running, finished, stopped (resume it) or failed. code: the exit code, null while it runs. reason: the line
    that was printed. step: the last finished step; while it runs, as of the last checkpoint. checkpoint_step: the step
    from which the run resumes, or null. warnings: `RunWarnings.entries`. updated: UTC.

    check: called before each write, as in `Reporter`.
    """

    def __init__(
        self,
        out: Path,
        step: int,
        checkpoint_step: int | None,
        check: Callable[[], None] = lambda: None,
        warnings: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._path, self._check, self._warnings = out / STATUS, check, warnings
        self.step, self.checkpoint_step = step, checkpoint_step
        self._write("running", None, None)

    def saved(self, step: int) -> None:
        """A checkpoint of this step is complete."""
        self.step, self.checkpoint_step = max(self.step, step), step
        self._write("running", None, None)

    def warned(self) -> None:
        """There is a new warning."""
        self._write("running", None, None)

    def ended(self, ending: BaseException | None) -> None:
        """The run is over; `ending` is what ended it early."""
        if ending is None:
            self._write("finished", ExitCode.FINISHED, None)
        else:
            self._write(*_how_it_ended(ending))

    def _write(self, state: State, code: int | None, reason: str | None) -> None:
        self._check()
        _write(self._path, state, code, reason, self.step, self.checkpoint_step, self._warnings)


def _how_it_ended(ending: BaseException) -> tuple[State, int, str]:
    """State, code and reason."""
    code = ending.exit_code if isinstance(ending, RunError) else ExitCode.UNEXPECTED
    state = "stopped" if isinstance(ending, StopRequested) else "failed"
    return state, code, one_line(str(ending) or type(ending).__name__)


def _write_again(path: Path, ending: BaseException, before: dict[str, Any]) -> None:
    steps = before.get("step"), before.get("checkpoint_step")
    _write(path, *_how_it_ended(ending), *steps, _warnings_of(before))


def _warnings_of(before: dict[str, Any]) -> list[dict[str, Any]]:
    warnings = before.get("warnings")
    return warnings if isinstance(warnings, list) else []


def _write(
    path: Path,
    state: State,
    code: int | None,
    reason: str | None,
    step: int | None,
    checkpoint_step: int | None,
    warnings: Sequence[dict[str, Any]],
) -> None:
    told = {
        "state": state,
        "code": None if code is None else int(code),
        "reason": reason,
        "step": step,
        "checkpoint_step": checkpoint_step,
        "warnings": list(warnings),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json_atomically(path, told)
