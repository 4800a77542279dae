"""Starts the processes of a launch on this machine as `torchrun` does, one per GPU; on a CPU over gloo."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
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


def start_ranks(
    command: Sequence[str], environment: Mapping[str, str], num_processes: int, output: IO | None = None
) -> list[subprocess.Popen]:
    """Start `command` as every rank of a launch. The processes end with this one. output: file for their output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1", **environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    streams = {} if output is None else {"stdout": output, "stderr": subprocess.STDOUT}
    return [
        subprocess.Popen(
            list(command),
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=_end_with_this_process,
            **streams,
        )
        for rank in range(num_processes)
    ]


def wait_for(ranks: Sequence[subprocess.Popen], seconds: float) -> list[int | None]:
    """The exit code of each process (negative: a signal); None for processes that had to be killed after the time."""
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


def _end_with_this_process() -> None:
    get_signal_at_parents_death(signal.SIGKILL)
