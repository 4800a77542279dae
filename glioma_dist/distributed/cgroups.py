"""The memory that the limits of a container or a job leave to this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def free_in_cgroups() -> Iterator[int]:
    """What the limits of this process's control groups leave: of containers, and of jobs of SLURM and systemd."""
    for group in _cgroups():
        yield from _free_in(*group)


def limits_of_cgroups() -> Iterator[int]:
    """The limits themselves."""
    for folder, limit, _ in _cgroups():
        with contextlib.suppress(OSError, ValueError):
            yield int((folder / limit).read_text())


def _cgroups() -> Iterator[tuple[Path, str, str]]:
    """This process's control groups of memory and those above them, each with the names of its limit and its usage."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            v2 = controllers == ""
            if not v2 and "memory" not in controllers.split(","):
                continue
            root = CGROUP if v2 else CGROUP / "memory"
            files = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            folder = root / name.strip("/")
            for each in (folder, *folder.parents):
                if each == CGROUP.parent:
                    break
                yield each, *files


def _free_in(folder: Path, limit: str, usage: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        most = int((folder / limit).read_text())  # "max" where there is none
        used = int((folder / usage).read_text())
        cached = 0
        with contextlib.suppress(OSError, ValueError):
            told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(told.get("inactive_file", 0))  # the system gives it back when somebody needs it
        yield max(0, most - used + cached)
