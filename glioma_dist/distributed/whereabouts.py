"""Which process a launch waits for, on which machine, and what it was doing.

When a process does not come, gloo and NCCL say only that an operation timed out. Here each process writes a sign of
life into the launch's store every second, with what it is doing. A thread with a connection of its own does this, so
that a training step sends nothing. A process whose communication failed compares the signs and names those that are
missing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from datetime import timedelta

from torch.distributed import Store

from glioma_dist.distributed.lost_processes import Loss
from glioma_dist.errors import one_line

KEY = "glioma_dist/whereabouts"
SECONDS_BETWEEN_SIGNS = 1.0
SECONDS_TO_LISTEN = 4.0
"""A process that gives no sign for so long counts as silent."""
SECONDS_BETWEEN_LOOKS = 0.5
MOST_NAMED = 3
"""Processes or machines that a message names."""
MAX_WORDS = 120
"""Characters of a host's name, and of what a process was doing."""


@dataclass(frozen=True)
class Sign:
    """What a process has told of itself."""

    number: int
    """Of its signs so far."""
    doing: str = "starting"
    meetings: int = 0
    """How many agreements it has begun. All processes begin the same ones in the same order."""
    seconds: float = 0.0
    """For how long it has been doing this."""
    has_failed: bool = False
    """Whether its communication has failed, too."""


class Whereabouts:
    """What this process is doing, for the others to read; and what they were doing.

    store: the launch's. hosts: the name of each rank's machine. A process of several calls `tell` before any process
    calls `start`.
    """

    def __init__(self, rank: int = 0, hosts: Sequence[str] = ("",), store: Store | None = None) -> None:
        self._rank, self._hosts, self._store = rank, tuple(one_line(host, MAX_WORDS) for host in hosts), store
        self._doing, self._since, self._meetings = "starting", time.monotonic(), 0
        self._work, self._has_failed = "the first step", False
        self.is_paused = False
        """Whether no signs are given: the others may have ended, and with the first one the store."""

    def tell(self, number: int = 1, store: Store | None = None) -> None:
        """Write a sign of life into the store."""
        seconds = time.monotonic() - self._since
        sign = Sign(number, self._doing, self._meetings, seconds, self._has_failed)
        (store or self._store).set(f"{KEY}/{self._rank}", json.dumps(astuple(sign)))

    def start(self) -> None:
        """Give signs of life until the process ends."""
        own = self._store.clone()
        # A thread that waits in the store's library holds nothing that the end of the process needs.
        threading.Thread(target=self._give_signs, args=(own,), daemon=True).start()

    def at(self, doing: str) -> None:
        """Note what this process does from now on."""
        self._doing, self._since = doing, time.monotonic()

    def wait_for_data(self, work: str) -> None:
        """Note that this process waits for the data of `work`, for example "step 41", which it computes next."""
        self._work = work
        self.at(f"waiting for the data of {work}")

    def meet(self) -> None:
        """Note that this process waits for all others, to agree to begin the work that was noted last."""
        self._meetings += 1
        self.at(f"waiting at the agreement before {self._work}")

    def compute(self) -> None:
        """Note that all have agreed to begin this work."""
        self.at(f"computing {self._work}")

    def first_host(self) -> str:
        """Who is not there when the launch's store does not answer."""
        return f"{self._hosts[0]} (rank 0, the launch's store)"

    def find_missing(self, loss: Loss | None, seconds: float, is_answered: Callable[[], bool]) -> str | None:
        """Name the processes that this one waits for, with what they were doing; None if none stands out.

        loss: what the failed communication said, if it said anything. seconds: for how long it waited. is_answered:
        whether another process has given the reason meanwhile. Takes up to `SECONDS_TO_LISTEN`; raises what the store
        raises.
        """
        self._has_failed = True
        before = self._read()
        until = time.monotonic() + SECONDS_TO_LISTEN
        silent = list(range(len(before)))
        while silent and time.monotonic() < until and not is_answered():
            time.sleep(SECONDS_BETWEEN_LOOKS)
            now = self._read()
            silent = [rank for rank in silent if now[rank].number == before[rank].number]
        if self._rank in silent:  # then the silence of others says nothing
            return None
        if silent:
            said = {Loss.ENDED: "ended", Loss.SILENT: f"did not answer for {seconds:g} s"}
            said = said.get(loss, "gave no more signs of life")
            return f"{self.name(silent)} {said}{self._last_seen([before[rank] for rank in silent])}"
        if loss is Loss.ENDED:
            return None
        late = self._find_late(self._read())
        if not late:
            return None
        doing = "; ".join(f"{sign.doing}, for {sign.seconds:.0f} s" for sign in dict.fromkeys(late.values()))
        place = self._doing.removeprefix("waiting at ")
        missed = f"reach {place}" if place != self._doing else "come to where the others wait"
        within = "" if loss is None else f" within {seconds:g} s"
        return f"{self.name(list(late))} did not {missed}{within} ({one_line(doing, MAX_WORDS)})"

    def name(self, ranks: Sequence[int]) -> str:
        """Machines of which all processes are among `ranks`, and single ranks of others."""
        ranks, several = set(ranks), len(set(self._hosts)) > 1
        names = []
        for host in dict.fromkeys(self._hosts):
            all_there = [rank for rank, each in enumerate(self._hosts) if each == host]
            found = [rank for rank in all_there if rank in ranks]
            if several and found == all_there:
                numbers = f"{found[0]} to {found[-1]}" if len(found) > 2 else " and ".join(map(str, found))
                names.append(f"{host} (rank{'s' if len(found) > 1 else ''} {numbers})")
            else:
                names += [f"rank {rank} on {host}" for rank in found]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return f"{', '.join(names[:MOST_NAMED])}{more}"

    def _find_late(self, signs: list[Sign]) -> dict[int, Sign]:
        """Processes that have begun fewer agreements than the furthest; or that do something else than this one; or, if
        there are none, whose own communication has not failed: they never began it."""
        furthest = max(sign.meetings for sign in signs)
        others = {rank: sign for rank, sign in enumerate(signs) if rank != self._rank}
        tests = (
            lambda sign: sign.meetings < furthest,
            lambda sign: sign.doing != self._doing,
            lambda sign: not sign.has_failed,
        )
        found = ({rank: sign for rank, sign in others.items() if test(sign)} for test in tests)
        return next((each for each in found if each), {})

    @staticmethod
    def _last_seen(signs: Sequence[Sign]) -> str:
        doing = "; ".join(dict.fromkeys(sign.doing for sign in signs))
        return f" (last seen {one_line(doing, MAX_WORDS)})"

    def _read(self) -> list[Sign]:
        """The last sign of each rank: one question to the store, which thousands of ranks can ask."""
        told = self._store.multi_get([f"{KEY}/{rank}" for rank in range(len(self._hosts))])
        return [Sign(*json.loads(each)) for each in told]

    def _give_signs(self, store: Store) -> None:
        number = 1
        try:
            store.set_timeout(timedelta(seconds=SECONDS_TO_LISTEN))
            while True:
                number += 1
                if not self.is_paused:
                    self.tell(number, store)
                time.sleep(SECONDS_BETWEEN_SIGNS)
        except RuntimeError:  # the store is gone; the next communication says so
            return
