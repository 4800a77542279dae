"""Files and folders that are written in a hidden folder, and renamed when all are complete."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glioma_dist.files import partial_name, remove_tree, sync


def replace_by(new: Path, path: Path) -> None:
    """Rename a complete file or folder to `path`, in place of what is there. A folder's old one is moved to beside
    `new` first, so a kill in between leaves none. Raises OSError."""
    for attempt in range(10):  # others may move it, or put theirs in its place, at any moment
        with suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                os.rename(path, new.with_name(f"{new.name}.old{attempt}"))
        try:
            os.replace(new, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR):
                raise
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


@contextmanager
def hidden_folder(path: Path) -> Iterator[Path]:
    """Within it, an empty folder beside `path` for what becomes `path` later. It is removed at the end.

    What a kill leaves of it is removed by the next call for the same path. A call while another process is within it
    gets a folder of its own, and so does each call where folders cannot be locked, as on NFS: what a kill leaves of
    that one stays, because nobody can tell whether its process lives. Raises OSError.
    """
    folder = partial_name(path)
    lock = _lock_folder(folder)
    if lock is None:
        # Not by the process's number: containers and machines that share the file system have the same ones.
        folder = partial_name(path.with_name(f"{path.name} {secrets.token_hex(16)}"))
        folder.mkdir()
    try:
        for each in folder.iterdir():
            remove_tree(each)
        yield folder
    finally:
        remove_tree(folder)
        if lock is not None:
            os.close(lock)


def _lock_folder(folder: Path) -> int | None:
    """Make a folder that may be there, and lock it. Returns the descriptor that holds the lock; None where another
    process holds it, or the file system knows no locks of folders."""
    folder.mkdir(exist_ok=True)
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:  # else it was removed by who held the lock before
            return descriptor
    except OSError:
        pass
    if descriptor is not None:
        os.close(descriptor)
    return None


def sync_tree(path: Path) -> None:
    """`sync` of a file, or of a folder with all that is in it. Raises OSError."""
    if path.is_dir():
        for each in path.iterdir():
            sync_tree(each)
    sync(path)
