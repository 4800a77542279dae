"""Where a measurement was taken: the device, the code, the libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Literal

import torch

from glioma_dist.distributed.environment import find_commit, find_own_commit, find_version, processor_name
from glioma_dist.distributed.launch import USE_CPU, flag
from glioma_dist.errors import InputError, one_line
from glioma_dist.fingerprint import code_fingerprint

__all__ = ["describe_code", "describe_device", "find_commit", "find_device", "find_own_commit", "find_version"]

SECONDS_TO_ANSWER = 180
"""For a GPU to tell its name: a driver that starts first takes seconds for each, and one that hangs never answers."""


def describe_code() -> dict[str, str | None]:
    """This package's commit, and a hash of its code: a commit alone does not tell two states apart that both have
    changes (`-dirty`), and a package that pip installed may have none."""
    return {"commit": find_own_commit(), "code": code_fingerprint([])}


def find_device() -> Literal["cuda", "cpu"]:
    """What accelerate would take. The GPU stays untouched: what this process holds there, cells would miss.

    Raises InputError where accelerate's setting is neither true nor false.
    """
    return "cuda" if not flag(os.environ, USE_CPU) and torch.cuda.is_available() else "cpu"


def describe_device(device: str, threads: int | None = None) -> str:
    """The name of this machine's GPU, or of its CPU. Raises InputError for a GPU that does not work.

    threads: of PyTorch in a process that is measured on a CPU; by default those of this one.
    """
    if device == "cuda":
        command = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS_TO_ANSWER
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"the GPU did not answer within {SECONDS_TO_ANSWER:g} s; look at nvidia-smi") from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise InputError(f"the GPU cannot be used ({one_line(said[-1], 200)}); look at nvidia-smi")
        return done.stdout.strip()
    threads = threads or torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}"
