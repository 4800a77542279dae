"""The memory and the CPUs that the limits of a container or a job leave to this process."""

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


def cpus_of_cgroups() -> Iterator[float]:
    """How many CPUs the limits on time are worth. A container may see all CPUs of its machine and get the time of a
    few."""
    for folder, v2 in _folders("cpu"):
        with contextlib.suppress(OSError, ValueError):
            if v2:
                quota, period = map(int, (folder / "cpu.max").read_text().split())  # "max" where there is none
            else:
                quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0 and period > 0:
                yield quota / period


def _cgroups() -> Iterator[tuple[Path, str, str]]:
    """This process's control groups of memory and those above them, each with the names of its limit and its usage."""
    for folder, v2 in _folders("memory"):
        yield folder, *(("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def _folders(controller: str) -> Iterator[tuple[Path, bool]]:
    """This process's control groups of one kind and those above them, and whether they are of the second version."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            v2 = controllers == ""
            if not v2 and controller not in controllers.split(","):
                continue
            folder = (CGROUP if v2 else CGROUP / controller) / name.strip("/")
            for each in (folder, *folder.parents):
                if each == CGROUP.parent:
                    break
                yield each, v2


def _free_in(folder: Path, limit: str, usage: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        most = int((folder / limit).read_text())  # "max" where there is none
        used = int((folder / usage).read_text())
        cached = 0
        with contextlib.suppress(OSError, ValueError):
            told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(told.get("inactive_file", 0))  # the system gives it back when somebody needs it
        yield max(0, most - used + cached)
