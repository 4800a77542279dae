"""run-status: what it says of each state of a run, to people and to scripts."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from test_cli import said

from glioma_dist.cli import program
from glioma_dist.cli.run_status import find_status
from glioma_dist.distributed.exit_codes import VARIABLE, code_of_launch, read_exit_codes
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import (
    ExitCode,
    InputError,
    MemoryFullError,
    NonFiniteError,
    StopRequested,
    UnavailableError,
)
from glioma_dist.training.folder_lock import folder_lock, is_held
from glioma_dist.training.status import STATUS, StatusFile

ENDINGS = {
    "finished": (None, 0, "finished", "nothing"),
    "stopped": (StopRequested("received SIGTERM"), 75, "stopped", "run again"),
    "lost": (UnavailableError("another process of this run ended"), 69, "failed", "run again"),
    "refused": (InputError("runs/x/last: the disk is full"), 2, "failed", "fix"),
    "memory": (MemoryFullError("out of memory"), 3, "failed", "fix"),
    "nan": (NonFiniteError("the loss is nan"), 4, "failed", "fix"),
    "bug": (ZeroDivisionError("a bug"), 1, "failed", "fix"),
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def note(folder, codes: dict[int, int | None]) -> None:
    folder.mkdir()
    for rank, code in codes.items():
        (folder / f"rank-{rank}").write_text("" if code is None else str(code))


@pytest.mark.parametrize("name", ENDINGS)
def test_the_code_of_a_run_is_that_of_its_end(run, name):
    ending, code, state, what_next = ENDINGS[name]
    StatusFile(run, 40, 40).ended(ending)
    status = find_status(str(run), None)
    assert (status.code, status.state, status.next) == (code, state, what_next)
    assert (status.step, status.checkpoint_step) == (40, 40)
    assert status.reason == (None if ending is None else str(ending))
    ended, out, err = said(program.run, ["run-status", str(run)])
    assert (ended, err) == (0, "")
    assert f"{state}, exit code {code}" in out
    assert "step 40, checkpoint at step 40" in out
    ended, out, _ = said(program.run, ["run-status", str(run), "--exit", "--json"])
    assert ended == code
    assert json.loads(out) == json.loads(json.dumps(status.__dict__))


def test_a_killed_run_is_to_be_resumed(run):
    StatusFile(run, 7, None)
    status = find_status(str(run), None)
    assert (status.state, status.code, status.next) == ("killed", 75, "run again")
    _, out, _ = said(program.run, ["run-status", str(run)])
    assert "no checkpoint" in out


HOLD = """
import sys
from pathlib import Path
from glioma_dist.training.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


def test_a_run_in_progress_is_told_from_a_killed_one(run):
    """Another process holds the folder; asking takes no lock from it, and none for itself."""
    StatusFile(run, 7, 7)
    assert not is_held(run)
    command = [sys.executable, "-c", HOLD, str(run)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"\n"
        assert is_held(run)
        status = find_status(str(run), None)
        assert (status.state, status.code, status.next) == ("running", 69, "run again")
        assert "wait until it ends" in said(program.run, ["run-status", str(run)])[1]
        assert is_held(run)
        holder.stdin.close()
    assert not is_held(run)
    with folder_lock(run):  # nobody else has kept it
        pass


LAST_LAUNCHES = [
    # status.json, codes of the last launch by rank, and what run-status says
    ("stopped", {0: 2, 1: 2}, 2, "failed"),  # a mistyped flag at the second start
    ("finished", {0: 2}, 2, "failed"),  # a finished run that is started with other settings
    ("finished", {0: 0, 1: 69}, 0, "finished"),  # a process that was lost at the very end
    ("finished", {0: 0}, 0, "finished"),
    ("finished", {}, 0, "finished"),
    ("memory", {0: 75, 1: None}, 75, "killed"),  # the start after, with other settings, was killed while it began
    ("memory", {0: 3}, 3, "failed"),
    ("lost", {0: 69, 1: None}, 69, "failed"),
    ("lost", {0: 75, 1: 75}, 75, "stopped"),
    ("stopped", {0: 75, 1: 75}, 75, "stopped"),
    ("stopped", {}, 69, "not begun"),
    ("bug", {0: 69, 1: 1}, 1, "failed"),
    ("running", {0: None}, 75, "killed"),
    ("running", {0: 2}, 2, "failed"),
    ("running", {0: 75}, 75, "stopped"),
    ("running", {0: 0}, 2, "failed"),  # RUN is no --out of that launch
    (None, {0: 69}, 69, "failed"),
    (None, {0: 130}, 130, "failed"),
]


@pytest.mark.parametrize(("before", "codes", "code", "state"), LAST_LAUNCHES)
def test_what_the_last_launch_ended_with_counts_more_than_an_older_status(run, before, codes, code, state):
    if before is not None:
        status = StatusFile(run, 40, 40)
        if before != "running":
            status.ended(ENDINGS[before][0])
    note(run.parent / "codes", codes)
    status = find_status(str(run), run.parent / "codes")
    assert (status.code, status.state) == (code, state)
    assert (status.reason is None) == (code == 0)


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_has_a_place(code):
    """A code that is added later has to be ranked, too."""
    for other in set(ExitCode):
        assert code_of_launch({0: code, 1: other}) in (code, other)
        assert code_of_launch({0: code, 1: other}) == code_of_launch({0: other, 1: code})


NO_STATUS = [
    "",
    "{}",
    "[1]",
    '{"state": "gone"}',
    '{"state": "failed", "code": "2"}',
    '{"state": "failed", "code": 999}',
    '{"state": "finished"}',
    '{"state": ["failed"], "code": 2}',
    '{"state": "failed", "code": 2, "step": "\\u001b[2J"}',
    '{"state": "failed", "code": 2, "step": 3, "updated": {}}',
]


@pytest.mark.parametrize("content", NO_STATUS)
def test_what_is_no_status_is_one_line(run, content):
    (run / STATUS).write_text(content)
    with pytest.raises(InputError, match=re.escape(str(run / STATUS))):
        find_status(str(run), None)


def test_what_is_no_run_is_one_line(run):
    with pytest.raises(InputError, match="no training has begun there"):
        find_status(str(run), None)
    with pytest.raises(InputError, match="no training has begun there"):
        find_status(str(run / "gone"), None)
    (run / STATUS).mkdir()
    with pytest.raises(InputError, match="is a folder"):
        find_status(str(run), None)


def test_what_are_no_codes_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"--exit-codes .*gone: no such folder"):
        program.run(["run-status", str(tmp_path), "--exit-codes", str(tmp_path / "gone")])
    (tmp_path / "rank-0").write_text("two")
    (tmp_path / "other").write_text("2")
    with pytest.raises(InputError, match="rank-0: is no exit code"):
        read_exit_codes(tmp_path)
    with pytest.raises(InputError, match="rank-0"):
        read_exit_codes(tmp_path / "rank-0")


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (3, 3), ("a text", 1)])
def test_the_code_that_is_noted_is_the_one_that_python_ends_with(tmp_path, monkeypatch, given, code):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(SystemExit):
        run_command(lambda: sys.exit(given))
    assert read_exit_codes(tmp_path) == {0: code}
