"""Work that another thread does while training continues."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class InThread(Generic[Result]):
    """Starts `work` in a thread of its own, which does not keep a process alive that was told to end at once.

    name: of the thread.
    """

    def __init__(self, work: Callable[[], Result], name: str) -> None:
        self._work: Callable[[], Result] = work
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError:  # the system gives this process no more threads
            self._run()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    @property
    def is_done(self) -> bool:
        """Whether the work has ended."""
        return self._done.is_set()

    def wait(self) -> None:
        """Until the work has ended."""
        self._done.wait()

    def result(self) -> Result:
        """What the work returned, or raised, once it has ended."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result
