"""Faults: signals to a run, and lost or stopped processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from signal import SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGSEGV, SIGSTOP, SIGTERM, SIGUSR1, Signals

from contract import FINISHED, STOPPED, UNAVAILABLE, Fault
from file_calls import Moment
from forks import Ended, wait_until
from inflict import SECONDS_TO_END, hurt, hurt_ranks, signal_rank, start_server
from stage import SECONDS_A_RUN, Stage, at_step, in_validation

KILLED = -SIGKILL
STOPS = (SIGTERM, SIGINT, SIGHUP, SIGUSR1)
CI = ("SIGTERM at a step", "SIGKILL between the renames of a checkpoint", "SIGHUP in validation")


def at_start(then: Signals) -> Moment:
    """When the index of the training data is read."""
    return Moment("open", "*/train/index.json", then)


def at_rename(then: Signals) -> Moment:
    """When the second checkpoint gets its name; the first one has been renamed by then."""
    return Moment("rename", "*/run/last", then, 2)


def in_worker(then: Signals) -> Moment:
    """When a process that reads data opens a shard for the 19th sample, which is of the fifth batch."""
    return Moment("open", "*/train/*.tar", then, 19)


def closed_output(stage: Stage) -> Sequence[Ended]:
    """As `train.py | head -1` does."""
    reading, writing = os.pipe()
    launch = stage.train(job={"stdout": writing})
    os.close(writing)
    with open(reading) as stream:
        assert stream.readline()
    return launch.wait(SECONDS_TO_END)


def stalled_store(stage: Stage, workers: int) -> Sequence[Ended]:
    """SIGTERM while a server that never answers keeps the loader waiting."""
    server = start_server(stage)
    server.faults = lambda path, number: "stall" if len(server.requests) > 16 and path.endswith(".tar") else None
    server.stall_seconds = 1000
    launch = stage.train(data=server.url, **{"data.workers": workers})
    count = 0

    def is_quiet() -> bool:
        nonlocal count
        before, count = count, len(server.requests)
        return count > 16 and before == count

    wait_until(is_quiet, SECONDS_A_RUN, "the server was never asked")
    launch.first.signal(SIGTERM)
    ended = launch.wait(SECONDS_TO_END)
    server.faults = lambda path, number: None
    server.ended.set()
    return ended


def instant_restart(stage: Stage) -> Sequence[Ended]:
    """SIGKILL three times, each time with workers at work, and the same command in the same instant."""
    flags = {"data.workers": 2}
    stage.train([at_step(2, SIGKILL)], **flags).first.ended.wait(SECONDS_A_RUN)
    for _ in range(2):
        stage.train([Moment("write", "*/metrics.jsonl", SIGKILL)], **flags).first.ended.wait(SECONDS_A_RUN)
    return stage.train(**flags).wait(SECONDS_TO_END)


def two_at_once(stage: Stage) -> Sequence[Ended]:
    """A second start while the first run trains: the second is refused, the first ends as if nothing was."""
    second: list[Ended] = []

    def start_another(call: object) -> None:
        # The first run is held at its step until the second has ended.
        launch = stage.last
        second.extend(stage.train().wait(SECONDS_A_RUN))
        stage.last = launch

    return [*stage.train([at_step(2, start_another)]).wait(SECONDS_TO_END), *second]


def _signals() -> list[Fault]:
    kill = {"codes": (KILLED,), "saved": False}
    faults = [
        Fault("SIGKILL at start", "Signals", hurt(partial(at_start, SIGKILL)), **kill, telling=False),
        Fault("SIGKILL at a step", "Signals", hurt(partial(at_step, 5, SIGKILL)), **kill),
        Fault("SIGKILL in validation", "Signals", hurt(partial(in_validation, SIGKILL)), **kill),
        Fault(
            "SIGKILL between the renames of a checkpoint",
            "Signals",
            hurt(partial(at_rename, SIGKILL), save_every=2),
            **kill,
        ),
        Fault("SIGKILL with workers, instant restart", "Signals", instant_restart),
    ]
    for number in STOPS:
        stop = {"codes": (STOPPED,), "says": f"received {number.name}"}
        faults += [
            Fault(f"{number.name} at start", "Signals", hurt(partial(at_start, number)), **stop, telling=False),
            Fault(f"{number.name} at a step", "Signals", hurt(partial(at_step, 5, number)), **stop),
            Fault(f"{number.name} in validation", "Signals", hurt(partial(in_validation, number)), **stop),
            Fault(
                f"{number.name} between the renames of a checkpoint",
                "Signals",
                hurt(partial(at_rename, number), save_every=2),
                **stop,
            ),
        ]
    waiting = {"codes": (STOPPED,), "says": "received SIGTERM", "seconds": 90}
    return [
        *faults,
        Fault("SIGTERM while a store does not answer", "Signals", partial(stalled_store, workers=0), **waiting),
        Fault("SIGTERM while workers wait for a store", "Signals", partial(stalled_store, workers=2), **waiting),
        Fault("closed standard output", "Signals", closed_output, (STOPPED,), "output was closed"),
    ]


def _processes() -> list[Fault]:
    def to_rank(rank: int, number: Signals) -> Fault:
        def moment(stage: Stage) -> Moment:
            return at_step(5, lambda call: signal_rank(stage, rank, number))

        codes = (KILLED if rank == 0 else UNAVAILABLE, KILLED if rank == 1 else UNAVAILABLE)
        after, says = None, "ended|lost"
        if number == SIGSTOP:
            codes, says = (UNAVAILABLE, UNAVAILABLE), r"did not answer for \d+ s"

            def after(stage: Stage) -> None:
                signal_rank(stage, rank, SIGCONT)

        return Fault(
            f"{number.name} to rank {rank} of two",
            "Processes",
            hurt_ranks(moment, after),
            codes,
            says,
            saved=False,
            reference="two",
            telling=rank == 1 or number == SIGKILL,
        )

    lost = {"codes": (UNAVAILABLE,)}
    return [
        *(to_rank(rank, number) for rank in (0, 1) for number in (SIGKILL, SIGSTOP)),
        Fault(
            "SIGKILL to a worker",
            "Processes",
            hurt(partial(in_worker, SIGKILL), data__workers=2),
            says="worker",
            **lost,
        ),
        Fault(
            "SIGSEGV in a worker",
            "Processes",
            hurt(partial(in_worker, SIGSEGV), data__workers=2),
            says="worker",
            **lost,
        ),
        Fault(
            "SIGSTOP to a worker",
            "Processes",
            hurt(partial(in_worker, SIGSTOP), data__workers=2, scale__timeout_s=8),
            says=r"did not answer for \d+ s",
            **lost,
        ),
        Fault("second start in the same folder", "Processes", two_at_once, (FINISHED, 2), "another training"),
    ]


FAULTS = [*_signals(), *_processes()]
