"""Results of tasks, in the order of the tasks: prefetched by the workers of a pool, or computed on demand here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from glioma_dist.data.worker_pool import Job, WorkerPool


class Stream:
    """Results of a pool's workers in the order of the tasks, prefetched.

    tasks: may be endless. places: free places of a ring; each running task holds one, and each result until it is
    released. num_ahead: largest number of running tasks. seconds_to_answer: see `WorkerPool.get`.
    """

    def __init__(
        self, pool: WorkerPool, job: int, tasks: Iterator, places: list[int], num_ahead: int, seconds_to_answer: float
    ) -> None:
        self._pool, self._job, self._tasks, self._num_ahead = pool, job, tasks, num_ahead
        self._free, self._seconds_to_answer = places, seconds_to_answer
        self._under_way: list[tuple[int, int]] = []
        """Ticket and place of each running task, the oldest first."""

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[Any, int]:
        """The next result and its place, which the caller releases. Raises the exception of the worker, and the errors
        of `WorkerPool.get`."""
        self._ask()
        if not self._under_way:
            if not self._free and next(self._tasks, None) is not None:
                raise RuntimeError("all places of the ring are in use: release one before the next is asked for")
            raise StopIteration
        ticket, place = self._under_way[0]
        made = self._pool.get(ticket, self._seconds_to_answer)
        del self._under_way[0]
        if isinstance(made, BaseException):
            self.release(place)
            raise made
        return made, place

    def is_ready(self) -> bool:
        """Whether the next result is ready."""
        self._ask()
        return bool(self._under_way) and self._pool.has(self._under_way[0][0])

    def release(self, place: int) -> None:
        """Allow workers to write to the place again."""
        self._free.append(place)

    def close(self) -> None:
        """Drop all running tasks. Their places become free when the workers have finished them."""
        for ticket, place in self._under_way:
            self._pool.forget(ticket, partial(self.release, place))
        self._under_way = []

    def _ask(self) -> None:
        while len(self._under_way) < self._num_ahead and self._free:
            task = next(self._tasks, None)
            if task is None:
                return
            place = self._free.pop(0)
            self._under_way.append((self._pool.submit(self._job, task, place), place))


class StreamHere:
    """The same without workers: each result is computed when it is asked for, and has no place."""

    def __init__(self, job: Job, tasks: Iterator) -> None:
        self._job, self._tasks = job, tasks

    def __iter__(self) -> StreamHere:
        return self

    def __next__(self) -> tuple[Any, None]:
        return self._job.make(next(self._tasks), None, lambda _shard, _place: None), None

    def is_ready(self) -> bool:
        return False

    def release(self, place: None) -> None:
        pass

    def close(self) -> None:
        pass
