"""Reading and writing beside computing: the next image is read, and the one before written, in a thread each.

At most three images are in memory: one that is read ahead, one that is computed, one that is written.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from glioma_dist.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
SECONDS_TO_END = 10.0
"""That the end of a command waits for a thread which still reads or writes."""


class Outcome(NamedTuple, Generic[Item, Result]):
    """What became of an item: a result, or the error that is its user's."""

    item: Item
    result: Result | None
    error: InputError | None


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], in_thread: bool = True
) -> Generator[Outcome[Item, Result]]:
    """Yield each item with what `read` makes of it, in order; the next one is read while the caller works on this one.

    in_thread: False reads each only when it is asked for: where `read` communicates with other processes, which two
    threads would do in different orders.

    `read` is called from one thread at a time. Its InputError is the item's outcome; every other error is raised where
    the item is due. Close the generator to stop early.
    """
    if not in_thread:
        for item in items:
            yield _outcome_of(item, _call(partial(read, item)))
        return
    with _Thread("read ahead") as thread:
        waiting: tuple[Item, Future] | None = None
        for item in items:
            following = item, thread.start(partial(read, item))
            if waiting is not None:
                yield _outcome_of(*waiting)
            waiting = following
        if waiting is not None:
            yield _outcome_of(*waiting)


class WriteBehind(Generic[Item, Result]):
    """Writes results in a thread, one at a time and in order; a context manager.

    in_thread: False writes each at once.
    """

    def __init__(self, in_thread: bool = True) -> None:
        self._thread = _Thread("write behind") if in_thread else None
        self._waiting: tuple[Item, Future] | None = None

    def __enter__(self) -> WriteBehind[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the write under way, so that no file changes afterwards; what became of it nobody learns."""
        if self._thread is not None:
            self._thread.__exit__()

    def put(self, item: Item, write: Callable[[], Result]) -> list[Outcome[Item, Result]]:
        """Begin to write. Waits for the write before, and returns what became of it: none or one outcome.

        Raises what that one raised, unless it is an InputError; then nothing is begun.
        """
        done = self.finish()
        self._waiting = item, _call(write) if self._thread is None else self._thread.start(write)
        return done

    def finish(self) -> list[Outcome[Item, Result]]:
        """Wait for the last write, and return what became of it, as `put` does."""
        waiting, self._waiting = self._waiting, None
        return [] if waiting is None else [_outcome_of(*waiting)]


class _Thread:
    """A thread that makes calls, in order. It does not keep a process alive that is to end.

    One for all calls: the system ends processes that a thread started when that thread ends, if they ask for it.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system gives this process no more threads
            self._thread = None

    def __enter__(self) -> _Thread:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join(SECONDS_TO_END)

    def start(self, call: Callable[[], Any]) -> Future:
        if self._thread is None:
            return _call(call)
        future: Future = Future()
        self._calls.put((call, future))
        return future

    def _run(self) -> None:
        while (asked := self._calls.get()) is not None:
            _call(*asked)
            del asked  # which holds an image


def _call(call: Callable[[], Any], future: Future | None = None) -> Future:
    future = Future() if future is None else future
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
    return future


def _outcome_of(item: Item, future: Future) -> Outcome[Item, Any]:
    """Waits for it."""
    try:
        return Outcome(item, future.result(), None)
    except InputError as error:
        return Outcome(item, None, error)
