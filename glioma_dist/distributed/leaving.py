"""Closes the connections of a process to the others of its launch, at its end or when NCCL's watchdog ends it."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress

SECONDS_TO_LEAVE = 10.0
"""Time limit for closing the connections: NCCL can wait for a process that has ended."""

SECONDS_TO_EXIT = 5.0
"""Time limit for Python's exit where a library was given up."""

WATCHDOG_WAIT, WATCHDOG_WAIT_MS = "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "1000"
"""After a failure NCCL's watchdog sleeps for four times this (60 s by PyTorch's default), so that debug information can
be written, before it ends the process."""

_given_up = False
_handler: object = None
"""The function that C++ calls, kept alive here because C++ holds no Python reference."""


def leave_at_exit() -> None:
    """Close the connections when Python ends for any reason, in this process but not in processes that it forks."""
    process = os.getpid()
    atexit.register(lambda: leave() if os.getpid() == process else None)


def leave(seconds: float = SECONDS_TO_LEAVE) -> bool:
    """Close this process's connections to the others (`destroy_process_group`), so that processes that wait for it see
    that it has ended. Waits at most `seconds`. Returns whether the connections were closed in that time."""
    dist = sys.modules.get("torch.distributed")  # if nobody imported it, there are no connections
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return True

    def close() -> None:
        try:
            dist.destroy_process_group()
        except (RuntimeError, ValueError):
            return  # a connection that is broken already

    # In a thread, because neither Python nor a signal can interrupt it.
    thread = threading.Thread(target=close, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def give_up_library() -> None:
    """Note that a library does not answer, or has failed: at Python's exit it could wait for its server."""
    global _given_up
    _given_up = True


def bound_exit(exit_code: int, seconds: float = SECONDS_TO_EXIT) -> None:
    """End this process with its exit code after at most `seconds`, where a library was given up. A command calls it
    last, when all is written."""
    if not _given_up:
        return

    def end() -> None:
        time.sleep(seconds)
        os._exit(exit_code)

    threading.Thread(target=end, daemon=True).start()


def shorten_watchdog_wait(environment: MutableMapping[str, str]) -> None:
    """Let NCCL's watchdog end a process a few seconds after a communication has failed, and not a minute: a process
    that is lost is to be named soon. A value that is there already stays. Call it before the process group is made."""
    environment.setdefault(WATCHDOG_WAIT, WATCHDOG_WAIT_MS)


def end_quickly(exit_code: int) -> None:
    """End this process as Python does, but without destroying each object of the libraries first: PyTorch's take a
    second. A command calls it last."""
    # It tells pools of threads to end, such as torch.compile's, and then waits for all threads.
    vars(threading)["_shutdown"]()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(exit_code)


def call_at_terminate(function: Callable[[], None]) -> bool:
    """Make C++ call `function` where an uncaught error would end the process with SIGABRT (`std::set_terminate`).

    The watchdog thread of PyTorch's NCCL process group ends the process in this way if a communication fails or times
    out. The main thread then waits for a GPU, and no Python exception is raised. `function` runs in the failing thread
    and must end the process. Returns whether the C++ library supports this (GNU's does).
    """
    global _handler
    try:
        set_terminate = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE  # std::set_terminate
    except (OSError, AttributeError):
        return False
    kind = ctypes.CFUNCTYPE(None)
    set_terminate.argtypes, set_terminate.restype = [kind], ctypes.c_void_p
    _handler = kind(function)
    set_terminate(_handler)
    return True
