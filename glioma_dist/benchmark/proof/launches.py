"""Launches of several processes, one a GPU, as `torchrun` makes them; on a CPU over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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


def ask_ranks(task: str, setting: Setting, num_processes: int, **given: str) -> list[dict]:
    """What `task` of ranks.py found in each process of a launch. Raises RuntimeError where one did not end well."""
    folder = Path(setting.folder) / f"{task} {' '.join(given.values())}".strip()
    folder.mkdir()
    words = [sys.executable, "-m", RANKS, task, json.dumps(asdict(setting)), json.dumps(given), str(folder)]
    codes = [rank.wait() for rank in start_ranks(words, setting, num_processes)]
    if any(codes):
        raise RuntimeError(f"{task} {given}: the processes ended with {codes}; their own lines say why")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]


def _end_with_this_process() -> None:
    get_signal_at_parents_death(signal.SIGKILL)
