"""Makes the C library keep memory that a process frees and soon needs again."""

from __future__ import annotations

import ctypes

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_MAX = -1, -4
"""Numbers of mallopt's parameters, from glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Make the C library keep large blocks that tensors free, if it supports this (glibc, mallopt(3)).

    By default it returns each block to the system and gets it again page by page, which takes a quarter of a step's
    time on a CPU (docs/log.md).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MALLOPT_MMAP_MAX, 0)
        libc.mallopt(MALLOPT_TRIM_THRESHOLD, -1)
