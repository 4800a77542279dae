"""Starts the processes of a launch on this machine as `torchrun` does, one per GPU; on a CPU over gloo."""

from __future__ import annotations

import math
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO

from glioma_dist.distributed.signals import get_signal_at_parents_death

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
}
"""The environment variables that `accelerate launch` sets from accelerate_configs/fsdp2.yaml."""
THREADS = {"OMP_NUM_THREADS": "1"}
"""Of each process, unless the environment says otherwise."""
SECONDS_BETWEEN_LOOKS = 0.05


def start_ranks(
    command: Sequence[str], environment: Mapping[str, str], num_processes: int, output: IO | None = None
) -> list[subprocess.Popen]:
    """Start `command` as every rank of a launch. The processes end with this one. output: file for their output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**THREADS, **environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    streams = {} if output is None else {"stdout": output, "stderr": subprocess.STDOUT}
    ranks: list[subprocess.Popen] = []
    try:
        for rank in range(num_processes):
            own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(list(command), env=own, preexec_fn=end_with_this_process, **streams))
    except BaseException:  # a signal, or a limit on processes
        _kill(ranks)
        raise
    return ranks


def wait_for(
    ranks: Sequence[subprocess.Popen], seconds: float, seconds_after_failure: float = math.inf
) -> list[int | None]:
    """The exit code of each process (negative: a signal); None for processes that had to be killed after the time, or
    as many seconds after another one has failed. If it is interrupted, all are killed."""
    until = time.monotonic() + seconds
    has_failed = False
    try:
        while None in (codes := [rank.poll() for rank in ranks]) and time.monotonic() < until:
            if any(codes) and not has_failed:
                has_failed, until = True, min(until, time.monotonic() + seconds_after_failure)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return codes
    finally:
        _kill(ranks)


def _kill(ranks: Sequence[subprocess.Popen]) -> None:
    """Those that have not ended: before what they write to is removed."""
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
            rank.wait()


def end_with_this_process() -> None:
    """Before a new process becomes what it is to be: the system kills it when this one ends."""
    get_signal_at_parents_death(signal.SIGKILL)
