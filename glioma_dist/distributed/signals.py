"""The signals by which a system or a user asks a process to stop."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from glioma_dist.errors import Interrupted, StopRequested

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Clouds and schedulers send SIGTERM before they take a machine away, SLURM also SIGUSR1; Ctrl-C sends SIGINT, and a
terminal that is closed SIGHUP."""
SECONDS_BETWEEN_TWO_REQUESTS = 1.0
"""A launcher hands a Ctrl-C on, so the same request can arrive twice; a user who asks twice needs longer."""

SECONDS_TO_TRY_AGAIN = 0.05
"""After a signal has come where no exception can leave: until the program is elsewhere."""

PRCTL_PARENT_DEATH_SIGNAL = 1
"""From Linux's sys/prctl.h."""


def get_signal_at_parents_death(number: int) -> None:
    """Have the system send this process the signal `number` when its parent ends, where it can (Linux, prctl(2))."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PRCTL_PARENT_DEATH_SIGNAL, number)


class StopSignal:
    """Notices a request to stop, so that the work can be saved. Use it as a context. In another thread than the main
    one, where Python handles no signals, it notices none.

    A signal raises Interrupted where the program is at that moment. Within `deferred` it is only noted, in
    `received`, and within `immediate` inside of that it raises again. A second Ctrl-C goes to whoever handled the
    signal before. A signal that was ignored before, as nohup does with SIGHUP, stays ignored, and one that a program in
    C handles stays with it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._at = 0.0
        self._deferred = False
        self._before: dict[int, object] = {}
        self._unraisable_before = sys.unraisablehook

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._unraisable_before, sys.unraisablehook = sys.unraisablehook, self._cannot_raise
        for number in STOP_SIGNALS:
            before = signal.getsignal(number)
            # None: of a program in C that Python is part of, as R is. It could not be put back.
            if before is not signal.SIG_IGN and before is not None:
                self._before[number] = before
                signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._unraisable_before
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def request(self) -> StopRequested | None:
        """The error to raise once the work is saved, where a signal has come."""
        return StopRequested(f"received {self.received}") if self.received else None

    @property
    def received_at(self) -> float:
        """When the last signal came, as time.monotonic() tells."""
        return self._at

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, a signal is noted and nothing is interrupted."""
        with self._switched(True):
            yield

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within it, a signal interrupts, and one that was noted before does so at once."""
        with self._switched(False):
            if self.request:
                raise Interrupted(self.request)
            yield

    @contextmanager
    def _switched(self, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before

    def _notice(self, number: int, _frame: object) -> None:
        again = self.received is not None and time.monotonic() - self._at >= SECONDS_BETWEEN_TWO_REQUESTS
        if again and number == signal.SIGINT:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
            return
        self.received, self._at = signal.Signals(number).name, time.monotonic()
        if not self._deferred:
            raise Interrupted(self.request)

    def _cannot_raise(self, what: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised in finalizers and in what runs at a fork, and prints a traceback."""
        if isinstance(what.exc_value, Interrupted):
            number = signal.Signals[self.received]
            again = threading.Timer(SECONDS_TO_TRY_AGAIN, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        elif not self.received:  # else it is an object that was interrupted while it was made
            self._unraisable_before(what)
