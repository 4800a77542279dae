"""Launches of several processes, one a GPU, as `torchrun` makes them; on a CPU over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from glioma_dist.benchmark.proof.lines import Setting
from glioma_dist.benchmark.proof.trainings import variables
from glioma_dist.distributed.signals import get_signal_at_parents_death

RANKS = "glioma_dist.benchmark.proof.ranks"


def start_ranks(
    command: Sequence[str], setting: Setting, num_processes: int, extra: Mapping[str, str] | None = None
) -> list[subprocess.Popen]:
    """Start `command` as every rank of one launch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | variables(setting) | dict(extra or {})
    shared |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_PORT": str(port)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return [
        subprocess.Popen(
            list(command),
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=_end_with_this_process,
        )
        for rank in range(num_processes)
    ]


def wait_for(ranks: Sequence[subprocess.Popen], seconds: float) -> list[int | None]:
    """The exit code of each (negative: a signal); None of those that have not ended by then, which are killed."""
    until = time.monotonic() + seconds
    for rank in ranks:
        with suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, until - time.monotonic()))
    codes = [rank.poll() for rank in ranks]
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
            rank.wait()
    return codes


class LaunchFailedError(Exception):
    """A process of a launch did not end well."""


def ask_ranks(
    task: str, setting: Setting, num_processes: int, extra: Mapping[str, str] | None = None, **given: str
) -> Iterator[tuple[str, float]]:
    """What `task` of ranks.py finds in a launch: each name, and the largest of the processes' figures.

    Raises LaunchFailedError where a process did not end well, after what all had found before.
    """
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        words = [sys.executable, "-m", RANKS, task, json.dumps(asdict(setting)), json.dumps(given), folder]
        codes = [rank.wait() for rank in start_ranks(words, setting, num_processes, extra)]
        files = [Path(folder) / f"{rank}.jsonl" for rank in range(num_processes)]
        told = [[json.loads(line) for line in file.read_text().splitlines()] if file.exists() else [] for file in files]
    for row in zip(*told, strict=False):
        yield row[0][0], max(value for _, value in row)
    if any(codes):
        raise LaunchFailedError(f"{task} {given}: the processes ended with {codes}; the lines above say why")


def _end_with_this_process() -> None:
    get_signal_at_parents_death(signal.SIGKILL)
