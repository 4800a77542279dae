"""Faults at every file operation of a run, one after another: a kill before it, or a disk that is full from it on."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import SIGKILL

from contract import USER_ERROR, Fault, check_end
from file_calls import FileCall, Moment
from forks import Ended
from run_contents import check_same
from stage import SECONDS_A_RUN, Shared, Stage

STEP_BETWEEN = int(os.environ.get("FAULTS_STEP", "5"))
"""One operation in so many is tried; 1 tries all."""
FLAGS = {"save-every": 2}


def operations(shared: Shared) -> list[FileCall]:
    """What an undisturbed run does to files below its folder, in order: opens to write, writes, renames, removals."""
    with temporary_stage(shared) as stage:
        (ended,) = stage.train([], **FLAGS).wait(SECONDS_A_RUN)
    return [call for call in ended.calls if _counts(call)]


def _counts(call: FileCall) -> bool:
    return call.makes or call.kind == "remove"


class Nth(Moment):
    """The n-th operation of `operations`, from 0. A fault that stays is there at all later ones that write, too."""

    def __init__(self, folder: Path, number: int, then: object, stays: bool) -> None:
        super().__init__("any", f"{folder}*", then, number + 1, again=stays)

    def meets(self, call: FileCall) -> bool:
        # What a full disk cannot hinder counts, but does not fail.
        return _counts(call) and super().meets(call) and (call.makes or not self.again)


def sweep(shared: Shared, then: object, stays: bool) -> tuple[int, list[str]]:
    """Try the operations, each in a run of its own. Returns how many were tried, and what went wrong at which."""
    found = operations(shared)
    numbers = range(0, len(found), STEP_BETWEEN)
    wrong = []
    for number in numbers:
        call = found[number]
        with temporary_stage(shared) as stage:
            try:
                ended = stage.train([Nth(stage.out, number, then, stays)], **FLAGS).wait(SECONDS_A_RUN)
                _check(shared, stage, ended)
            except AssertionError as error:
                wrong.append(f"operation {number} ({call.kind} {Path(call.path).name}): {str(error)[:600]}")
    return len(numbers), wrong


def _check(shared: Shared, stage: Stage, ended: Sequence[Ended]) -> None:
    killed = ended[0].code == -SIGKILL
    promise = Fault(
        "sweep",
        "Sweep",
        lambda stage: ended,
        (-SIGKILL if killed else (0, USER_ERROR),),
        None if killed or ended[0].code == 0 else "full|quota",
    )
    check_end(promise, stage, ended)
    (again,) = stage.resume()
    assert again.code == 0, again.stderr[-1500:]
    check_same(stage.out, shared.one)


@contextlib.contextmanager
def temporary_stage(shared: Shared) -> Iterator[Stage]:
    """A stage in a folder of its own. Its path is short: TMPDIR is below it, and sockets there have short names."""
    with tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True) as folder:
        stage = Stage(shared, Path(folder))
        with stage.closing:
            yield stage


SWEEPS = {
    "SIGKILL before every file operation": (SIGKILL, False),
    "ENOSPC from every file operation on": (errno.ENOSPC, True),
}
