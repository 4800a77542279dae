"""Where a measurement was taken: the device, the code, the libraries."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

LIBRARIES = ("torch", "accelerate", "timm", "transformers", "segmentation-models-pytorch", "glioma-dist")
"""Whose versions a measurement depends on."""
BENCHMARKS = Path("docs/benchmarks")


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


def count_gpus() -> tuple[int, str]:
    """Number of GPUs that PyTorch can use, and why it can use none. They stay untouched."""
    if find_device() == "cpu" and not torch.cuda.is_available():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.is_available()
        built = "" if torch.version.cuda else "this PyTorch is built without CUDA"
        return 0, built or " ".join(str(each.message) for each in said)
    return torch.cuda.device_count(), ""


def device_folder(device: str) -> Path:
    """The folder of a device's results, named after it: docs/benchmarks/nvidia_h100_80gb_hbm3."""
    name = re.sub(r"\(R\)|\(TM\)", "", describe_device(device).partition(",")[0])
    return BENCHMARKS / re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


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
