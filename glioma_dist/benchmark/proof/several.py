"""Several GPUs against one: the checks that launch processes. On a CPU they run over gloo."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from glioma_dist.benchmark.launching import FSDP2, wait_for
from glioma_dist.benchmark.proof.interruption import EVERY_LOOK, EndedEarlyError
from glioma_dist.benchmark.proof.launches import ask_ranks, start_on
from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.benchmark.proof.trainings import largest_difference, read_rows, train_command
from glioma_dist.errors import ExitCode

ENCODERS = ("mit_tiny", "resnet50", "mobilenet_v2")
EXACT = 1e-9
"""Of fp64, in shares of a tensor's largest number."""
RESUMED = 1e-4
"""Of a loss in fp32: sums over processes come in any order."""
SECONDS_TO_END = 60.0
SECONDS_TO_WAIT = 90.0
"""For processes that should have ended: longer than the bound, so that how they end is seen where they are late."""
SECONDS_TO_ANSWER = 20
NUM_PROCESSES = 2


def compare_ddp(setting: Setting, findings: Findings) -> None:
    """DDP on two devices against one process, for encoders with each kind of norm."""
    for encoder, difference in ask_ranks("engine", setting, NUM_PROCESSES, encoders=" ".join(ENCODERS)):
        findings.at_most(f"DDP, {encoder}", difference, EXACT)


def compare_spatial(setting: Setting, findings: Findings) -> None:
    """An image on two devices against one process, at each level."""
    for level, difference in ask_ranks("strips", setting, NUM_PROCESSES, encoder="mit_tiny"):
        findings.at_most(f"spatial, {level}", difference, EXACT)


def save_and_resume(setting: Setting, findings: Findings) -> None:
    """Four steps at once, and two and two, on two processes."""
    for engine, extra in (("DDP", {}), ("FSDP2", FSDP2)):
        if engine == "FSDP2" and setting.device == "cpu":
            findings.skipped("FSDP2, saved and resumed", "accelerate takes FSDP2 on GPUs only")
            continue
        for runs in (f"{engine}_whole 4 {engine}_parts 2", f"{engine}_parts 4"):
            for _ in ask_ranks("trainings", setting, NUM_PROCESSES, extra, runs=runs):
                pass
        parts, whole = (read_rows(Path(setting.folder) / f"{engine}_{name}") for name in ("parts", "whole"))
        findings.at_most(f"{engine}, saved and resumed", largest_difference(parts, whole), RESUMED)


def kill_one(setting: Setting, findings: Findings) -> None:
    """The second process is killed in the middle of a run: the first must not wait for it for ever.

    Raises EndedEarlyError where the run ends before: how its processes end then says nothing.
    """
    out = Path(setting.folder) / "killed"
    command = train_command(setting, out, max_steps=100_000, **{"scale.timeout-s": SECONDS_TO_ANSWER})
    ranks = start_on(setting, command, NUM_PROCESSES)
    while len(read_rows(out)) < 3:
        if any(rank.poll() is not None for rank in ranks):
            raise EndedEarlyError(f"the processes ended with {wait_for(ranks, 0)} before one was killed")
        time.sleep(EVERY_LOOK)
    ranks[1].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    code, of_killed = wait_for(ranks, SECONDS_TO_WAIT)
    findings.equal("the killed process", of_killed or 0, -int(signal.SIGKILL), "exit code")
    findings.at_most("one killed: all have ended", time.monotonic() - begin, SECONDS_TO_END, "s")
    findings.equal("one killed: the other says so", code or 0, int(ExitCode.UNAVAILABLE), "exit code")
