"""How much memory this process may take, how much it holds, and how much an image as a whole would take."""

from __future__ import annotations

import copy
import ctypes
import os
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glioma_dist.distributed.cgroups import free_in_cgroups
from glioma_dist.evaluation.network import Network
from glioma_dist.model.unet import unwrapped
from glioma_dist.scale.device_memory import free_memory

FREE_SHARE = 0.9
"""Of the memory that is free now: what other programs take meanwhile comes from the rest."""
MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_THRESHOLD, MALLOPT_MMAP_MAX = -1, -3, -4
"""Numbers of mallopt's parameters, from glibc's malloc.h."""
MAPPED_BYTES, MOST_MAPPED = 2**20, 65536
"""Blocks from this size on get pages of their own, which go back to the system as they are freed; and how many may."""
UNIT = 32
MARGIN = 1.1
"""Workspaces of kernels are not counted. With it a process took 0.7 to 0.92 of the estimate: mit_tiny, mit_b0, mit_b3
and resnet50, 768x768 and 1024x1024, two cores."""
PROBE_PIXELS = 2**21
"""An image of more is counted at this size, and the bytes grow with its pixels."""


def resident_bytes() -> int:
    """Return the bytes of memory that this process occupies now (resident set size)."""
    return psutil.Process().memory_info().rss


def memory_limit(asked: int | None) -> int:
    """Return how many bytes this process may occupy.

    asked: the limit in bytes that the user gave; None: what the process occupies now, and its share of 90 % of the
    memory that is free on the machine and in its cgroup. The processes of the launch on this machine share it equally.
    """
    if asked is not None:
        return asked
    free = min([psutil.virtual_memory().available, *free_in_cgroups()])
    num_local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return resident_bytes() + int(free * FREE_SHARE / num_local_processes)


def hand_back_freed_memory() -> None:
    """Have the C library give large blocks back to the system as soon as they are freed (glibc, mallopt(3)).

    Blocks of strips and tiles have many sizes: kept ones would lie between those that live, and the process would grow.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.mallopt(MALLOPT_MMAP_MAX, MOST_MAPPED)
        libc.mallopt(MALLOPT_MMAP_THRESHOLD, MAPPED_BYTES)
        libc.mallopt(MALLOPT_TRIM_THRESHOLD, MAPPED_BYTES)
        libc.malloc_trim(0)


def device_bytes(network: Network, limit: int, num_local_processes: int = 1) -> int:
    """Return how many bytes the computation of an image may take on the network's device: on a CPU what is left of
    `limit`."""
    if network.device.type == "cpu":
        return limit - resident_bytes()
    return int(free_memory(network.device, num_local_processes))


def image_bytes(network: Network, height: int, width: int, in_strips: bool = False) -> int:
    """Estimate how many bytes the network takes at most while it computes an image of this size (pixels) as a whole,
    with the image itself. Nothing is computed: fake tensors are counted."""
    # A network may have another form for whole images, which takes less memory.
    model = network.model if in_strips else network.whole_images or network.model
    pixels = _padded(height) * _padded(width)
    if pixels <= PROBE_PIXELS:
        return _counted(unwrapped(model), _padded(height), _padded(width))
    probe = _probe_sides(height, width)
    return int(_counted(unwrapped(model), *probe) * pixels / (probe[0] * probe[1]))


def _probe_sides(height: int, width: int) -> tuple[int, int]:
    """Sides of about this shape and `PROBE_PIXELS`; at least 8 units each."""
    share = (PROBE_PIXELS / (height * width)) ** 0.5
    rows = max(8, round(height * share / UNIT)) * UNIT
    return rows, max(8, PROBE_PIXELS // rows // UNIT) * UNIT


def _padded(side: int) -> int:
    return -(-side // UNIT) * UNIT


_counts: WeakKeyDictionary[nn.Module, dict[tuple[int, int], int]] = WeakKeyDictionary()
"""Of each network that is still in use, by height and width."""


def _counted(model: nn.Module, height: int, width: int) -> int:
    known = _counts.setdefault(model, {})
    if (height, width) not in known:
        known[height, width] = _count(model, height, width)
    return known[height, width]


def _count(model: nn.Module, height: int, width: int) -> int:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known: dict[int, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for tensor in chain(model.parameters(), model.buffers()):
            with mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            known[id(tensor)] = nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake
        weights = {each.untyped_storage()._cdata for each in known.values()}
        copied = copy.deepcopy(model, known)
        kind = next(copied.parameters()).dtype
        counter = _PeakCounter(weights)
        with mode, counter:
            images = torch.zeros(1, 3, height, width, dtype=kind)
            copied(images).float().sigmoid()
    return int(counter.peak * MARGIN)


class _PeakCounter(TorchDispatchMode):
    """Adds up the storages that live, after each operation, and what the operation itself holds beside them. weights:
    storages that are not counted."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.peak, self._weights = 0, weights
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._weights:
                    self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        inside = 0
        if func is torch.ops.aten.convolution.default:
            inside = args[0].numel() * args[0].element_size() + result.numel() * result.element_size()
        self.peak = max(self.peak, inside + sum(num_bytes for _, num_bytes in self._alive.values()))
        return result
