"""Memory that a process frees and soon needs again: whether the C library keeps it."""

from __future__ import annotations

import ctypes

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_MAX = -1, -4
"""Numbers of mallopt's parameters, from glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Have the C library keep large blocks that tensors free, where it can be told so (glibc, mallopt(3)).

    By default it gives each back to the system and asks for it again, page by page: a quarter of a step's time on a
    CPU (docs/log.md).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MALLOPT_MMAP_MAX, 0)
        libc.mallopt(MALLOPT_TRIM_THRESHOLD, -1)
