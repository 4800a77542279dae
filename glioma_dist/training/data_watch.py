"""Warnings where training waits for its data, so that a stalled loader is told apart from a slow model."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from glioma_dist.data.worker_pool import WorkerPool
from glioma_dist.errors import one_line

SECONDS_TO_WARN = 30.0
"""A wait for one batch that lasts so long is told while it lasts."""
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_OF_PERIOD = 300.0
"""Of training, after which the share of time spent waiting is looked at."""
MOST_SHARE = 0.5
"""A larger share of the time spent waiting for data is told, once a start."""
MOST_WORKERS = 3
"""Whose state a message tells."""
FASTER = "give more --data.workers (now {0}), keep shards of URLs in --data.cache, or give --data.cache-in-memory"


class DataWatch:
    """Looks after the waits for data of one process. A context manager: within it a thread looks once a second.

    pool: whose workers prepare the data. who: this process in messages, for example "rank 1 on host-b". seconds: after
    which a wait counts as endless, for the message.
    """

    def __init__(self, pool: WorkerPool, who: str, seconds: float) -> None:
        self._pool, self._who, self._seconds = pool, who, seconds
        self._wait: tuple[int, float] | None = None
        """The step whose data is awaited, and since when."""
        self._told: int | None = None
        self._began, self._waited = time.monotonic(), 0.0
        self._share_is_told = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> DataWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Within it, the process waits for the data of `step`."""
        since = time.monotonic()
        self._wait = (step, since)
        try:
            yield
        finally:
            self._wait = None
            self._waited += time.monotonic() - since
        if not self._share_is_told and time.monotonic() - self._began >= SECONDS_OF_PERIOD:
            self._tell_share()

    def _tell_share(self) -> None:
        period = time.monotonic() - self._began
        share = self._waited / period
        if share > MOST_SHARE:
            self._share_is_told = True
            _warn(
                f"{self._who} has waited for its data for {100 * share:.0f} % of the last {period:.0f} s: the loader "
                f"is slower than the model; {FASTER.format(self._pool.num_workers)}"
            )
        self._began, self._waited = time.monotonic(), 0.0

    def _look(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            wait = self._wait
            if wait is None or self._told == wait[0] or time.monotonic() - wait[1] < SECONDS_TO_WARN:
                continue
            self._told = wait[0]
            states = self._pool.states()
            workers = "; ".join(states[:MOST_WORKERS]) if states else "no workers: this process reads the data"
            more = f"; {len(states) - MOST_WORKERS} more" if len(states) > MOST_WORKERS else ""
            ends = f"after {self._seconds:g} s (--scale.timeout-s) the run ends; " if states else ""
            _warn(
                f"{self._who} has waited {time.monotonic() - wait[1]:.0f} s for the data of step {wait[0]} "
                f"({workers}{more}); {ends}check the disk or the store, or {FASTER.format(self._pool.num_workers)}"
            )


def _warn(line: str) -> None:
    sys.stderr.write(f"warning: {one_line(line)}\n")
    sys.stderr.flush()
