"""Calls that a run does not wait for, made one after another in a thread of their own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from glioma_dist.errors import one_line

MAX_WAITING = 4096
"""Calls that may wait. A server that is this far behind will not keep up."""


class BackgroundCalls:
    """Makes calls in a thread, in their order. The first one that fails is the last one; nothing is raised.

    name: of the thread. The thread starts with the first call, and does not keep the process from ending.
    """

    def __init__(self, name: str, max_waiting: int = MAX_WAITING) -> None:
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._problem: str | None = None
        self._has_ended = False

    def submit(self, call: Callable[[], object]) -> None:
        """Have `call` made. After a failure it is dropped. Returns at once."""
        if self._has_ended:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail(f"{self._calls.maxsize} calls behind the run")
            return
        if self._thread.ident is None:
            self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Calls that have not begun."""
        return self._calls.qsize()

    def take_problem(self) -> str | None:
        """Why no more calls are made, in one line; each problem is returned once."""
        problem, self._problem = self._problem, None
        return problem

    def end(self) -> None:
        """No more calls will come. Returns at once."""
        if self._thread.ident is not None and not self._has_ended:
            try:
                self._calls.put_nowait(None)
            except queue.Full:
                self._fail(f"{self._calls.maxsize} calls behind the run")

    def wait(self, seconds: float, until: float | None = None) -> None:
        """After `end`: wait until all calls are made, but at most `seconds`; what is not made by then is dropped.

        until: of `time.monotonic`, where several share the seconds.
        """
        if self._thread.ident is None or self._has_ended:
            return
        self._thread.join(seconds if until is None else max(0.1, until - time.monotonic()))
        if self._thread.is_alive():
            self._fail(f"not done within {seconds:g} s of the end of the run")

    def _fail(self, problem: str) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._problem = problem

    def _work(self) -> None:
        while not self._has_ended:
            call = self._calls.get()
            if call is None:
                self._has_ended = True
                return
            try:
                call()
            except BaseException as error:  # SystemExit too: some libraries end their program where a key is wrong
                self._fail(one_line(f"{type(error).__name__}: {error}", 200))
