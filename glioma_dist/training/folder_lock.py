"""A lock on a folder: one training or benchmark at a time writes there, on all machines that share the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glioma_dist.errors import InputError
from glioma_dist.files import cannot_write

LOCK = ".lock"
HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems answer that have no locks."""
FLOCK = "hhqqi4x"
"""Linux's struct flock: type, whence, start, length, process."""
_held: set[tuple[int, int]] = set()
"""Device and inode of the folders that this process holds. The system would let it lock a folder twice, and would drop
both locks as soon as it closes the lock file once."""


@contextmanager
def folder_lock(folder: Path, writer: str = "training") -> Iterator[bool]:
    """Hold a folder, which has to exist; the system lets go of it when the process ends, however it ends.

    A POSIX record lock: forked processes do not inherit it, so workers that outlive a killed training hold nothing.
    Gives whether the file system has locks; without them, nothing keeps two trainings apart. writer: what
    writes there, for the message. Raises InputError where another one holds the folder, or where it cannot be written
    to.
    """
    path = folder / LOCK
    try:
        where = os.stat(folder)
        key = (where.st_dev, where.st_ino)
        if key in _held:
            raise _refusal(folder, writer)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        locked = _lock(descriptor, folder, writer)
        _held.add(key)
        yield locked
    finally:
        _held.discard(key)
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether another process holds a folder, as far as the file system says. Takes no lock, so it disturbs nobody."""
    question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)  # some file systems ask for the right to write
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, question)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK


def _lock(descriptor: int, folder: Path, writer: str) -> bool:
    """Whether the file system has locks. Raises InputError where another process holds this one."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD_ELSEWHERE:
            raise _refusal(folder, writer) from error
        if error.errno in NO_LOCKS:
            return False
        raise cannot_write(folder / LOCK, error) from error
    return True


def _refusal(folder: Path, writer: str) -> InputError:
    return InputError(f"--out {folder}: another {writer} is writing there; wait until it ends, or give another --out")
