"""When a training process notices that one of its workers has died: while it waits for them, and at no other time.

PyTorch's own handler of SIGCHLD raises in whatever line the process is at, even in the middle of a checkpoint or of a
row of metrics.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Handler = Callable | int | None
"""What `signal.signal` takes and returns."""

_of_pytorch: Callable | None = None


def take_over_notices() -> tuple[Callable | None, Handler]:
    """Set PyTorch's handler aside. Call it when a loader has started its workers.

    Returns the handler, None where there is none, and what to hand to `give_back_notices`.
    """
    global _of_pytorch
    if threading.current_thread() is not threading.main_thread():
        return None, None
    found = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if callable(found):  # PyTorch sets it once a process, at its first loader
        _of_pytorch = found
    return _of_pytorch, found


def give_back_notices(found: Handler) -> None:
    """Put the handler back that was there before. Call it when the loader's workers have ended."""
    if found is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, found)


@contextmanager
def noticing_lost_workers(notice: Callable | None) -> Iterator[None]:
    """Within it, the handler raises as soon as a worker dies, and at once where one has died before.

    notice: as `take_over_notices` gave it.
    """
    if notice is None:
        yield
        return
    signal.signal(signal.SIGCHLD, notice)
    try:
        notice(signal.SIGCHLD, None)
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
