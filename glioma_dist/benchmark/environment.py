"""Where a measurement was taken: the device, the code, the libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Literal

import torch

from glioma_dist.distributed.environment import find_commit, find_version, processor_name
from glioma_dist.distributed.launch import USE_CPU, flag

__all__ = ["describe_device", "find_commit", "find_device", "find_version"]


def find_device() -> Literal["cuda", "cpu"]:
    """What accelerate would take. The GPU stays untouched: what this process holds there, cells would miss.

    Raises InputError where accelerate's setting is neither true nor false.
    """
    return "cuda" if not flag(os.environ, USE_CPU) and torch.cuda.is_available() else "cpu"


def describe_device(device: str) -> str:
    if device == "cuda":
        command = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
        return subprocess.check_output(command, text=True).strip()
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}"
