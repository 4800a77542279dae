"""How a process leaves the others of its launch: in order, and where NCCL's watchdog ends it."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
from collections.abc import Callable

SECONDS_TO_LEAVE = 10.0
"""For the connections to be closed. NCCL can wait for a process that has ended."""

_handler: object = None
"""What C++ calls at its end: kept, because C++ does not know of Python's references."""


def leave_at_exit() -> None:
    """Have this process, not those that it forks, leave the others when Python ends, however that comes about."""
    process = os.getpid()
    atexit.register(lambda: leave() if os.getpid() == process else None)


def leave(seconds: float = SECONDS_TO_LEAVE) -> bool:
    """Close this process's connections to the others (`destroy_process_group`); others that wait for it then see that
    it has ended. Returns whether that took less than `seconds`; it waits no longer."""
    dist = sys.modules.get("torch.distributed")  # where nobody imported it, there are no connections
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


def call_at_terminate(function: Callable[[], None]) -> bool:
    """Have C++ call `function` where it would end the process with SIGABRT, because nobody catches an error.

    The watchdog thread of PyTorch's NCCL process group does so where a communication fails or takes too long; the
    main thread then waits for a GPU, and no Python exception is raised. `function` runs in the failing thread and must
    end the process. Returns whether the C++ library can be told so (GNU's).
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
