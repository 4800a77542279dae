"""torchrun's agent in a forked process, with forked training processes: a launcher that need not import anything.

It is the agent that torchrun and `accelerate launch` run, started with functions in place of a script.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from chaos_recording import train
from chaos_starts import Ended, Place, Start, children, ended_of, is_alive

TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that the agent handles; a script that it starts begins without its handlers."""


def launch(processes: int, records: str, start: int, *flags: str) -> None:
    """Run the agent with so many training processes."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"{os.getpid()}-{time.time_ns()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, train_in_agent)(records, start, *flags)


def train_in_agent(records: str, start: int, *flags: str) -> int:
    """Train in a process of the agent, which takes the end of a function for success, an exit code for a failure."""
    for number in TAKEN:
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    code: object = 0
    try:
        train(records, start, 0, *flags)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        atexit._run_exitfuncs()
        os._exit(code if isinstance(code, int) else 1)
    return 0


class Agent(Start):
    """Processes of a forked agent."""

    def __init__(self, place: Place, number: int, out: Path, processes: int) -> None:
        super().__init__(place, number, out, processes)
        arguments = [processes, place.records, number, *place.flags(out)]
        self._run = place.forks.start(
            "chaos_agent:launch", arguments, place.environment(), folder=str(place.folder / "working")
        )
        self.launcher = self._run.pid
        self._known: list[int] = []

    def ranks(self) -> list[int]:
        self._known += [pid for pid in children(self._run.pid) if pid not in self._known]
        return [pid for pid in self._known if is_alive(pid)]

    def has_ended(self) -> bool:
        ranks = self.ranks()  # first: those that an agent leaves behind are its children no more
        return self._run.ended.is_set() and not ranks

    def ended(self) -> Ended:
        return ended_of([self._run.report["status"]], self._run.stderr, self.out, launched=True)

    def kill(self) -> None:
        for pid in self.ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._run.kill_session()
        self._run.ended.wait(20)
