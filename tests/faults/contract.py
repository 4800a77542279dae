"""What a run promises whatever happens to it, checked from outside."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forks import Ended
from run_contents import last_step, saved_step, status
from stage import Stage

MAX_LINE = 500
FINISHED, UNEXPECTED, USER_ERROR, UNAVAILABLE, STOPPED = 0, 1, 2, 69, 75
STATES = {FINISHED: "finished", STOPPED: "stopped"}
NOISE = re.compile(
    r"warning: |\[(rank\d+\]:\[)?[WE]\d{4} |Exception raised from |frame #\d+: |<omitting python frames>"
    r"|ERROR: Unexpected segmentation fault|$"
)
"""Lines beside the one that counts: warnings, and what PyTorch's C++ libraries say of a lost process or worker."""
ERROR, STOP = "error: ", "stopped: "


@dataclass(frozen=True)
class Fault:
    """A fault by name.

    inflict: starts the command, hurts it, and returns how its processes ended.
    codes: the exit code of each process, or several of which one is right; minus a signal's number for a kill.
    says: a pattern that the one line matches, behind `error: ` or `stopped: `; None where nothing is to be said.
    aloud: a pattern that stdout or stderr matches beside that line.
    saved: whether the checkpoint is that of the last finished step.
    resumes: whether the same command ends bit-equal to a run that nothing disturbed.
    needs_root: whether it mounts something.
    seconds, mebibytes: bounds of the hurt run, the latter with the 770 MiB of the libraries.
    ci: whether it is among the few that run with every test.
    telling: whether status.json can be written: not on a full disk, nor before the run's folder is there.
    quiet: whether a command that succeeds writes nothing to stderr; conversions tell of their progress there.
    trains: whether the command is a training, which has status.json and checkpoints.
    check: what else must hold, asked after the fault and before the same command runs again.
    repair: takes the fault out of the way where it does not go by itself.
    """

    name: str
    kind: str
    inflict: Callable[[Stage], Sequence[Ended]]
    codes: tuple[int | tuple[int, ...], ...] = (FINISHED,)
    says: str | None = None
    aloud: str | None = None
    saved: bool = True
    resumes: bool = True
    seconds: float = 120
    mebibytes: float = 1100
    ci: bool = False
    reference: str = "one"
    check: Callable[[Stage], None] | None = None
    repair: Callable[[Stage], None] | None = None
    telling: bool = True
    trains: bool = True
    needs_root: bool = False
    quiet: bool = True


def check_end(fault: Fault, stage: Stage, ended: Sequence[Ended]) -> None:
    """The exit code, the line, status.json, the checkpoint, the bounds, and that nothing lies elsewhere."""
    told = "\n".join(
        f"[{end.code} after {end.seconds:.1f} s, {end.peak_mib:.0f} MiB] {end.stderr[-3000:]}" for end in ended
    )
    codes = [code if isinstance(code, tuple) else (code,) for code in fault.codes]
    assert len(ended) == len(codes)
    assert all(end.code in code for end, code in zip(ended, codes, strict=True)), f"codes should be {codes}: {told}"
    _check_lines(fault, ended, told)
    if fault.aloud is not None:
        assert any(re.search(fault.aloud, end.stdout + end.stderr) for end in ended), f"not said aloud: {told}"
    assert max(end.seconds for end in ended) <= fault.seconds, told
    assert max(end.peak_mib for end in ended) <= fault.mebibytes, told
    assert stage.strangers() == []
    assert stage.data_is_untouched()
    if fault.check is not None:
        fault.check(stage)


def said(end: Ended) -> list[str]:
    """The lines on stderr that are the program's own."""
    lines = (line.strip("\0") for line in end.stderr.splitlines())  # PyTorch's handler of SIGSEGV ends its line so
    return [line for line in lines if not NOISE.match(line)]


def _check_lines(fault: Fault, ended: Sequence[Ended], told: str) -> None:
    lines = [line for end in ended for line in said(end)]
    if fault.says is None:
        assert "Traceback" not in told, told
        assert lines == [] or not fault.quiet, f"nothing should be said: {told}"
        return
    for end in ended:
        assert len(said(end)) <= 1, f"more than a line: {told}"
    assert lines, f"nothing was said: {told}"
    mark = STOP if STOPPED in {end.code for end in ended} else ERROR
    for line in lines:
        assert line.startswith(mark), f"should begin with {mark!r}: {told}"
        assert len(line) <= MAX_LINE + len(mark), f"{len(line)} characters: {told}"
    assert any(re.search(fault.says, line) for line in lines), f"should say {fault.says!r}: {told}"


def check_run_folder(fault: Fault, stage: Stage, ended: Sequence[Ended]) -> None:
    """status.json and the checkpoint after the fault."""
    out, code = stage.out, ended[0].code
    if fault.saved:
        assert saved_step(out) == last_step(out), "the checkpoint is not that of the last finished step"
    if not fault.telling:
        return
    found = status(out)
    assert found is not None, f"no status.json; {sorted(os.listdir(out)) if out.is_dir() else 'no folder'}"
    expected = ("running", None) if code < 0 else (STATES.get(code, "failed"), code)
    assert (found["state"], found["code"]) == expected, found
    assert (found["reason"] is None) == (code <= 0), found
    if code >= 0:
        assert found["step"] == last_step(out), found
        assert not fault.saved or found["checkpoint_step"] == (saved_step(out) or None), found
