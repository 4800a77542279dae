"""How many bytes of a device's memory, and of the host's, tensors may fill."""

from __future__ import annotations

import psutil
import torch

from glioma_dist.distributed.cgroups import free_in_cgroups, limits_of_cgroups

GIB = 2**30
RESERVED_GIB, RESERVED_SHARE = 0.75, 0.05
"""Of a GPU's memory, what is not for tensors: CUDA's context and kernels' workspaces, and gaps between tensors."""
WORKSPACES_GIB = 0.5
"""Of cuBLAS and cuDNN, and gaps between tensors, at most. Beside the tensors that are counted, an H100 and an H200 had
0.09 to 0.21 GiB allocated in a step (docs/benchmarks/memory_ledger.md). With 0.35 GiB six of seven steps on an H200
were taken. The seventh, 2592x1952 at offload, ran out of memory; where memory was plentiful, PyTorch reserved 0.575 GiB
more for it than was counted, for which 0.5 GiB and `RESERVED_SHARE` suffice (docs/log.md)."""

HOST_SHARE = 0.8
"""Of the host's free memory, what activations may fill: workers, the page cache and checkpoints need the rest."""


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
    most = min([psutil.virtual_memory().total, *limits_of_cgroups()])
    return most * (1 - RESERVED_SHARE) / num_local_processes


def free_host_memory(num_local_processes: int) -> float:
    """Bytes of host memory that a process may fill with activations, as things stand on machine and cgroup."""
    return _free_on_host() * HOST_SHARE / num_local_processes


def _free_on_host() -> int:
    return min([psutil.virtual_memory().available, *free_in_cgroups()])
