"""Files that one process at a time holds locked, and what to do about a holder that does not answer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS_TO_SPEAK = 0.1
"""In which a process that has just taken over an old file need not have written to it."""
MAX_WAITS = 10
"""How many times as long as one try a process waits for another that is still writing."""


class HeldError(Exception):
    """Another process holds a lock, and does not answer."""


@contextlib.contextmanager
def held(path: Path, seconds: float, holder: str) -> Iterator[int]:
    """The file `path`, made if need be, and locked: by nobody else, and until this process lets go or ends.

    Raises HeldError, naming `holder`, where another process holds it and has not written to it for `seconds`, or
    holds it for MAX_WAITS times as long.
    """
    start, wait = time.monotonic(), 0.001
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited, silent = time.monotonic() - start, time.time() - os.fstat(file).st_mtime
                if waited > SECONDS_TO_SPEAK and silent > seconds:
                    raise HeldError(f"{holder} did not answer for {silent:.0f} s") from None
                if waited > MAX_WAITS * seconds:
                    raise HeldError(f"{holder} did not finish within {waited:.0f} s") from None
            else:
                # Who held it before may have renamed or removed it: then this is a lock on nothing.
                if is_at(file, path):
                    os.utime(file)  # from now on it is this process that has not been heard of
                    yield file
                    return
        finally:
            os.close(file)
        time.sleep(wait)
        wait = min(2 * wait, 0.1)


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def clear_away(partial: Path) -> bool:
    """Remove a temporary file that nobody holds. Returns whether it is gone."""
    try:
        file = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return error.errno == errno.ENOENT
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(file, partial):  # or it was renamed, and another process's file has the name
            partial.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
