"""A run as users start it, with worker processes: it is asked to stop, resumed, and compared with one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.benchmark.proof.trainings import largest_difference, read_rows, train_command, variables
from glioma_dist.errors import ExitCode

SECONDS_TO_STOP = 60.0
NUM_STEPS, EVAL_EVERY, STOP_AFTER = 60, 6, 25
"""Rows of the metrics after which the run is asked to stop. All validations write to one ring: there are so many of
them that the run would wait for ever if each kept a place of it."""
WORKERS = 4
EVERY_LOOK = 0.005


class EndedEarlyError(Exception):
    """A run ended before the check could do to it what it is about."""


def stop_and_resume(setting: Setting, findings: Findings) -> None:
    """One run to its end; another that receives SIGTERM after some steps; the same command again.

    Raises EndedEarlyError where the other ends before.
    """
    whole, stopped = Path(setting.folder) / "whole", Path(setting.folder) / "stopped"
    # As users have it: bf16 with maps in channels_last, which the optimizer's state has to follow when it is loaded.
    environment = os.environ | variables(setting, "no" if setting.tiny else "bf16")
    code = subprocess.run(command(setting, whole), env=environment, check=False).returncode
    findings.equal("a run with workers ends", code, int(ExitCode.FINISHED), "exit code")
    expected = read_rows(whole)
    validations = sum(row.get("split") == "val" for row in expected)
    findings.equal("its validations", validations, NUM_STEPS // EVAL_EVERY)

    run = subprocess.Popen(command(setting, stopped), env=environment)
    while len(read_rows(stopped)) < STOP_AFTER:
        if run.poll() is not None:
            raise EndedEarlyError(f"the run ended with {run.returncode} before it was asked to stop")
        time.sleep(EVERY_LOOK)
    asked = time.monotonic()
    run.send_signal(signal.SIGTERM)
    code = run.wait()
    findings.equal("stopped by SIGTERM", code, int(ExitCode.STOPPED), "exit code")
    findings.at_most("from SIGTERM to its end", time.monotonic() - asked, SECONDS_TO_STOP, "s")
    done = len([row for row in read_rows(stopped) if "split" not in row])
    code = subprocess.run(command(setting, stopped), env=environment, check=False).returncode
    findings.equal("the same command resumes", code, int(ExitCode.FINISHED), "exit code")
    told = f"stopped after {done} of {NUM_STEPS} steps"
    findings.at_most("its losses, to the bit", largest_difference(read_rows(stopped), expected), 0.0, note=told)


def command(setting: Setting, out: Path) -> list[str]:
    """`glioma-dist train`, deterministic, with workers and validations."""
    flags = {"data.val": f"{setting.shards}/val", "data.workers": 1 if setting.tiny else WORKERS}
    return train_command(setting, out, max_steps=NUM_STEPS, eval_every=EVAL_EVERY, deterministic=True, **flags)
