"""Runs the checks of the proof run, each in a process of its own with a bound on its time. Those that measure neither
time nor memory run side by side.

A crash, a hang or a killed process of one check is a line that says FAIL, and the next check runs. A check says what it
found; whether that passes is decided here, and a line that a check owes and did not give has failed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from glioma_dist.benchmark.proof.lines import MAX_NOTE, Line, Setting, judge, read_findings
from glioma_dist.distributed.launched import without_launch
from glioma_dist.errors import one_line

CHILD = "glioma_dist.benchmark.proof.child"
SECONDS_BETWEEN_LOOKS = 0.02
SECONDS_TO_DIE = 30.0
"""For a process that is killed: where a GPU's driver hangs, the system ends none that waits for it."""
PATIENCE_ON_CPU = 4
"""Times as long as a check may take in a rehearsal, on a machine that may be busy with other work."""
PATIENCE_SIDE_BY_SIDE = 2
"""Times as long as a check may take beside others."""


@dataclass(frozen=True)
class Check:
    """One process of the proof run."""

    name: str
    target: str
    """module:function; it takes a `Setting` and `Findings`."""
    lines: tuple[str, ...]
    """Names of the lines that it owes."""
    seconds: float
    """After which it is killed."""
    devices: int = 1
    """GPUs that it needs; with fewer its lines are skipped."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables that have to be set before the process begins."""
    measures: bool = True
    """Whether it measures time or memory, so that no other check may run beside it."""


@dataclass(frozen=True)
class Ending:
    """How the process of a check ended."""

    reason: str
    """Empty where it ended well."""
    seconds: float


def run_checks(
    checks: Sequence[Check], setting: Setting, logs: Path, at_once: int = 1
) -> Iterator[tuple[Check, list[Line], float]]:
    """Each check with what `run_check` returns, in this order. at_once: checks that measure nothing, side by side."""
    stopped = threading.Event()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for measures, group in groupby(checks, key=lambda check: check.measures):
                if measures:
                    yield from ((check, *run_check(check, setting, logs)) for check in group)
                    continue
                patience = PATIENCE_SIDE_BY_SIDE if at_once > 1 else 1
                patient = [replace(check, seconds=patience * check.seconds) for check in group]
                running = [(check, pool.submit(run_check, check, setting, logs, stopped)) for check in patient]
                yield from ((check, *done.result()) for check, done in running)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def run_check(
    check: Check, setting: Setting, logs: Path, stopped: threading.Event | None = None
) -> tuple[list[Line], float]:
    """The check's lines, in the order in which it owes them, and its seconds. All that it prints is in `logs`.

    stopped: ends it before its time, as if the time were over.
    """
    if setting.num_devices < check.devices:
        reason = (
            f"needs {check.devices} GPUs; there {'is' if setting.num_devices == 1 else 'are'} {setting.num_devices}"
        )
        return [Line(check.name, name, "SKIPPED", note=reason) for name in check.lines], 0.0
    with tempfile.TemporaryDirectory(prefix="glioma-dist-proof-") as folder:
        results, work = Path(folder) / "findings.jsonl", Path(folder) / "work"
        work.mkdir()
        given = json.dumps(asdict(replace(setting, folder=str(work))))
        command = [sys.executable, "-m", CHILD, check.target, given, str(results)]
        environment = without_launch(os.environ) | dict(check.environment)
        seconds = check.seconds * (PATIENCE_ON_CPU if setting.tiny else 1)
        ending = _run(command, environment, seconds, logs / f"{check.name}.txt", stopped or threading.Event())
        found = read_findings(results)
    return _lines(check, found, ending), ending.seconds


def _lines(check: Check, found: Mapping[str, dict], ending: Ending) -> list[Line]:
    lines = []
    for name in check.lines:
        if name in found:
            lines.append(judge(check.name, found[name]))
        else:
            reason = ending.reason or "the check ended without this line"
            lines.append(Line(check.name, name, "FAIL", note=one_line(reason, MAX_NOTE)))
    lines += [
        Line(check.name, name, "FAIL", note="the check does not owe this line: name it in checks.py")
        for name in found
        if name not in check.lines
    ]
    if ending.reason and not any(line.status == "FAIL" for line in lines):
        lines.append(Line(check.name, "its process ends well", "FAIL", note=one_line(ending.reason, MAX_NOTE)))
    return lines


def _run(
    command: Sequence[str], environment: Mapping[str, str], seconds: float, log: Path, stopped: threading.Event
) -> Ending:
    """Run a command in a session of its own, and leave no process of it behind."""
    start = time.monotonic()
    with log.open("w", errors="replace") as output:
        child = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            # Its exit is looked for without taking its number away, so that the group can still be ended by it.
            while not (_has_ended(child.pid) or stopped.is_set()) and time.monotonic() - start < seconds:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            in_time = _has_ended(child.pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            code = None
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(SECONDS_TO_DIE)
    taken = time.monotonic() - start
    if code is None:
        return Ending(f"not done after {seconds:g} s, and the system does not end it; look at nvidia-smi", taken)
    if not in_time:
        return Ending(f"stopped: not done after {seconds:g} s", taken)
    if code:
        return Ending(f"{_told(code)}: {_last_line(log)}", taken)
    return Ending("", taken)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _told(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def _last_line(log: Path) -> str:
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return said[-1] if said else "no word"
