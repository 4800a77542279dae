"""Inflict a planned fault on a start at its moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos_agent import Agent
from chaos_plan import AGENT, PlannedFault
from chaos_recording import count_batches
from chaos_starts import SECONDS_BETWEEN_LOOKS, Forked, Launched, Place, Start
from faulty_server import FaultyServer
from file_calls import FileCall, Moment
from small_disk import Disk

SECONDS_OF_A_START = {None: 2.0, AGENT: 3.0, "torchrun": 8.0, "accelerate launch": 8.0}
"""Within which a fault "during the start" comes; some come after it, in the first steps."""
SECONDS_INTO_A_STEP = 0.3
SECONDS_TO_FIND = 600.0
"""To wait for a process that is to be hurt and is not there yet."""
LONGEST_OUTAGE = 3.0
SHARE_OF_LONG_OUTAGES = 0.4
STORE_FAULTS = {"resets": ("drop", "refuse"), "stalls": ("stall", "stall-body"), "answers 503": ("unavailable",) * 2}
STALL_SECONDS = 2.0


class Inflicted:
    """A start with a fault on its way. `happened` is set once it is there; `at`: when, by the monotonic clock.
    victims: places of the ranks that were signalled. whom: for the table."""

    def __init__(
        self,
        place: Place,
        fault: PlannedFault,
        server: FaultyServer,
        disk: Disk,
        number: int,
        out: Path,
        processes: int,
    ) -> None:
        self.fault, self._server, self._disk = fault, server, disk
        self.happened, self._ready = threading.Event(), threading.Event()
        self.at, self.victims, self.whom = 0.0, list[int](), ""
        self.failure: BaseException | None = None
        self.start: Start
        if fault.launcher is None:
            moments = None
            if fault.moment == "file call":
                moments = [Moment("makes", f"{out}/*", self._at_file_call, fault.call)]
            self.start = Forked(place, number, out, processes, moments)
        elif fault.launcher == AGENT:
            self.start = Agent(place, number, out, processes)
        else:
            self.start = Launched(place, number, out, processes, fault.launcher)
        self._ready.set()

    @property
    def is_long_outage(self) -> bool:
        """Whether the store stays away until the run has ended."""
        fault = self.fault
        return fault.kind == "store" and fault.variant != "stalls" and fault.size < SHARE_OF_LONG_OUTAGES

    @property
    def survives(self) -> bool:
        """Whether the run is not to end of it."""
        return self.fault.kind == "store" and not self.is_long_outage

    def persist(self) -> None:
        """Fill the disk again where the run has made room, as by removing an old checkpoint."""
        if self.fault.kind == "disk" and self.happened.is_set():
            self._disk.fill(self.start.ranks())

    def wait_for_moment(self, seconds: float) -> bool:
        """Wait for the fault and let it happen. Returns whether it has: the run may have been over before."""
        fault, start, until = self.fault, self.start, time.monotonic() + seconds

        def comes() -> bool:
            if fault.moment == "step":
                return count_batches(start.place.records, start.number) >= fault.steps
            if fault.moment == "start":
                return time.monotonic() > start.began + fault.delay * SECONDS_OF_A_START[fault.launcher]
            return self.happened.is_set()

        while not comes():
            if start.has_ended() or time.monotonic() > until:
                return self.happened.is_set()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if fault.moment == "step":
            time.sleep(fault.delay * SECONDS_INTO_A_STEP)
        if fault.moment != "file call":
            self._act()
        if self.failure is not None:
            raise self.failure
        return self.happened.is_set()

    def _at_file_call(self, call: FileCall) -> None:
        self._ready.wait()
        try:
            self._act()
        except BaseException as error:  # of the thread that answers file calls
            self.failure = error

    def _act(self) -> None:
        if self.start.has_ended():
            return
        self.at = time.monotonic()
        if getattr(self, f"_hurt_{self.fault.kind}")():
            self.happened.set()

    def _hurt_rank(self) -> bool:
        return self._signal(self.start.ranks, self.fault.variant)

    def _hurt_worker(self) -> bool:
        return self._signal(self.start.workers, self.fault.variant)

    def _hurt_launcher(self) -> bool:
        return self._signal(lambda: [self.start.launcher], self.fault.variant)

    def _signal(self, find: Callable[[], Sequence[int]], name: str) -> bool:
        """Signal one of the processes that `find` finds, once there is one. Returns whether there was."""
        found = self._wait_for(find)
        if not found:
            return False
        chosen = int(self.fault.place * len(found))
        self.at, self.victims = time.monotonic(), [chosen]
        self.whom = f"{self.fault.kind} {chosen} of {len(found)}" if self.fault.kind != "launcher" else ""
        return _send(found[chosen], signal.Signals[name])

    def _wait_for(self, find: Callable[[], Sequence[int]]) -> Sequence[int]:
        """Processes, once there are any; none where the start has ended before."""
        until = time.monotonic() + SECONDS_TO_FIND
        while not (found := find()) and not self.start.has_ended() and time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return found

    def _hurt_disk(self) -> bool:
        self._disk.fill(self.start.ranks())
        return True

    def _hurt_checkpoint(self) -> bool:
        """The run is ended first; `damage` hurts what it left."""
        name = "SIGKILL" if self.fault.delay < 0.5 else "SIGTERM"
        self.whom = f"after {name}"
        ranks = self._wait_for(self.start.ranks)
        self.at = time.monotonic()
        for pid in ranks if name == "SIGKILL" else ranks[:1]:
            _send(pid, signal.Signals[name])
        self.victims = list(range(len(ranks))) if name == "SIGKILL" else []
        return bool(ranks)

    def _hurt_store(self) -> bool:
        fault = self.fault
        answer = STORE_FAULTS[fault.variant][int(fault.place * 2)]
        self._server.stall_seconds = STALL_SECONDS
        end = None if self.is_long_outage else time.monotonic() + 0.5 + fault.size * LONGEST_OUTAGE
        self.whom = "until the end" if end is None else f"for {end - time.monotonic():.1f} s"

        def answers(path: str, number: int) -> str | None:
            return answer if end is None or time.monotonic() < end else None

        self._server.faults = answers
        return True

    def stop_in_order(self, seconds: float) -> None:
        """After a fault that a run survives: wait for a batch after it, then ask the run to stop."""
        start, records = self.start, self.start.place.records
        until = self.at + 0.5 + self.fault.size * LONGEST_OUTAGE
        while not start.has_ended() and time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        before, until = count_batches(records, start.number), time.monotonic() + seconds
        while not start.has_ended() and count_batches(records, start.number) <= before:
            if time.monotonic() > until:
                raise TimeoutError(f"no batch came within {seconds:g} s after the store answered again")
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self.at = time.monotonic()
        for pid in start.ranks()[:1]:
            _send(pid, signal.SIGTERM)


def _send(pid: int, number: signal.Signals) -> bool:
    """Signal a process. Returns whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def damage(out: Path, fault: PlannedFault) -> tuple[str, Callable[[], None]] | None:
    """Hurt a file of the newest checkpoint. Returns what was done, and what takes it back; None where none is there."""
    last = out / "last"
    files = sorted(path for path in last.glob("*") if path.is_file() and path.stat().st_size)
    if not files:
        return None
    path = files[int(fault.place * len(files))]
    content = path.read_bytes()
    position = int(fault.size * len(content))
    if fault.variant == "cut":
        changed, told = content[:position], f"last/{path.name} cut to {position} of {len(content)} bytes"
    else:
        bit = 1 << int(fault.delay * 8)
        changed = content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :]
        told = f"last/{path.name}, bit {bit:#x} of byte {position}"
    path.write_bytes(changed)
    return told, lambda: (out / "last" / path.name).write_bytes(content) and None
