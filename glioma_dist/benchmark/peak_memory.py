"""How much memory a process takes, as PyTorch tells it of a GPU and Linux of a process."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Literal

import torch
from torch.profiler import profile

GIB = 2**30
STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak memory in GiB from the moment at which it is made. On a GPU: of all that PyTorch allocates. On a CPU: how
    far the process grew, as Linux tells it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda" and torch.cuda.is_initialized():  # else there is no peak yet, nor a context
            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):  # the peak so far, that of importing, is forgotten
            Path("/proc/self/clear_refs").write_text("5")
        self._before = resident_gib("VmRSS")

    def allocated(self) -> float | None:
        """None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated() / GIB
        most = resident_gib("VmHWM")
        return None if self._before is None or most is None else most - self._before

    def reserved(self) -> float | None:
        """What PyTorch took from the GPU, gaps included; None on a CPU."""
        return torch.cuda.max_memory_reserved() / GIB if self._device.type == "cuda" else None


def peak_of_profile(profiler: profile, held_before: int) -> float:
    """Peak GiB of PyTorch's allocations on a CPU, from a profile taken with `profile_memory`.

    held_before: bytes of the tensors that existed when the profile began.
    """
    held = peak = held_before
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / GIB


def resident_gib(field: Literal["VmRSS", "VmHWM"]) -> float | None:
    """Memory that this process holds now, or held at most; None where there is no /proc, or one without the field, as
    in a sandbox (gVisor has no VmHWM)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE) if STATUS.exists() else None
    return None if found is None else int(found[1]) / 2**20
