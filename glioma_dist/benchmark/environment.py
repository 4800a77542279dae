"""Where a measurement was taken: the device, the code, the libraries."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch


def find_device() -> Literal["cuda", "cpu"]:
    """What accelerate would take. The GPU stays untouched: what this process holds there, cells would miss."""
    only_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1")
    return "cuda" if torch.cuda.is_available() and not only_cpu else "cpu"


def describe_device(device: str) -> str:
    if device == "cuda":
        command = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
        return subprocess.check_output(command, text=True).strip()
    table = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.+)$", table, re.MULTILINE)
    threads = torch.get_num_threads()
    return f"{model[1] if model else platform.processor()}, {threads} thread{'s' if threads > 1 else ''}"


def find_commit(repository: Path) -> str | None:
    """The repository's commit, with "-dirty" where tracked files differ from it; None without git."""
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def find_version(library: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(library)
