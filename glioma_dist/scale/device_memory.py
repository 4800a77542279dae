"""How many bytes of a device's memory, and of the host's, tensors may fill."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

GIB = 2**30
RESERVED_GIB, RESERVED_SHARE = 0.75, 0.05
"""Of a GPU's memory, what is not for tensors: CUDA's context and kernels' workspaces, and gaps between tensors."""
WORKSPACES_GIB = 0.35
"""Of cuBLAS and cuDNN, and gaps between tensors, at most. Beside the tensors that are counted, an H100 had 0.09 to 0.18
GiB allocated in a step (docs/benchmarks/nvidia_h100_80gb_hbm3/proof.md); with 0.2 GiB one of eight steps on an H200 ran
out of memory, for which PyTorch reserved 0.37 GiB more than was counted where memory was plentiful (docs/log.md)."""

HOST_SHARE = 0.8
"""Of the host's free memory, what activations may fill: workers, the page cache and checkpoints need the rest."""
CGROUP = Path("/sys/fs/cgroup")


def usable(memory: float) -> float:
    """Bytes for tensors on a GPU of `memory` bytes."""
    return memory * (1 - RESERVED_SHARE) - RESERVED_GIB * GIB


def free_memory(device: torch.device, num_local_processes: int) -> float:
    """Bytes that a process may fill with tensors on its device, as things stand: on a CPU on machine and cgroup."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * (1 - RESERVED_SHARE) - WORKSPACES_GIB * GIB
    return _free_on_host() * (1 - RESERVED_SHARE) / num_local_processes


def device_memory(device: torch.device, num_local_processes: int) -> float:
    """The same of a device that nothing else uses."""
    if device.type == "cuda":
        return usable(torch.cuda.get_device_properties(device).total_memory)
    most = min([psutil.virtual_memory().total, *_limits_of_cgroups()])
    return most * (1 - RESERVED_SHARE) / num_local_processes


def free_host_memory(num_local_processes: int) -> float:
    """Bytes of host memory that a process may fill with activations, as things stand on machine and cgroup."""
    return _free_on_host() * HOST_SHARE / num_local_processes


def _free_on_host() -> int:
    return min([psutil.virtual_memory().available, *free_in_cgroups()])


def free_in_cgroups() -> Iterator[int]:
    """What the limits of this process's control groups leave: of containers, and of jobs of SLURM and systemd."""
    for group in _cgroups():
        yield from _free_in(*group)


def _limits_of_cgroups() -> Iterator[int]:
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
