"""A small file system, which can be filled: a full disk."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Iterable
from pathlib import Path

SMALLEST_LIMIT = 2**16
"""Bytes: more than the records of a chaos run, so that only checkpoints reach it."""


def mount_small(folder: Path, num_bytes: int) -> None:
    """Mount a file system of its own in a folder. Needs root. Raises CalledProcessError where it cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def unmount(folder: Path) -> None:
    """Remove it from the folder at once, also while files in it are open."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write to a file system until it is full. Returns the file that fills it."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
        while file.write(bytes(2**12)):
            continue
    return ballast


class Disk:
    """A folder that can become full. A context manager.

    It is a small file system where this user may mount one. Elsewhere a limit on the size of a file (RLIMIT_FSIZE) is
    set for the processes that write: then files that grow beyond it fail.
    """

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self.folder, self._num_bytes = folder, num_bytes
        self.is_mounted = False

    def __enter__(self) -> Disk:
        try:
            mount_small(self.folder, self._num_bytes)
            self.is_mounted = True
        except (subprocess.CalledProcessError, FileNotFoundError):
            self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_mounted:
            unmount(self.folder)

    def fill(self, processes: Iterable[int]) -> None:
        """Make it full for these processes."""
        if self.is_mounted:
            fill(self.folder)
            return
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (SMALLEST_LIMIT, hard))

    def free(self) -> None:
        """Make room again; processes that start later have no limit."""
        (self.folder / "ballast").unlink(missing_ok=True)
