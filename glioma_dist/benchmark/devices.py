"""The devices of this machine, found out without using them, for benchmarks that start processes on them."""

from __future__ import annotations

import re
import subprocess
import warnings
from pathlib import Path

import torch

from glioma_dist.benchmark.environment import describe_device

LIBRARIES = ("torch", "accelerate", "timm", "transformers", "segmentation-models-pytorch", "glioma-dist")
"""Libraries whose versions are recorded with a measurement."""
BENCHMARKS = Path("docs/benchmarks")
SECONDS_TO_ANSWER = 30


def count_gpus() -> tuple[int, str]:
    """Number of GPUs that PyTorch can use, and the reason if there is none. No GPU is initialised."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    if found:
        return torch.cuda.device_count(), ""
    built = "" if torch.version.cuda else "this PyTorch is built without CUDA"
    return 0, built or " ".join(str(each.message) for each in said)


def gpu_memory() -> float:
    """Memory of the smallest GPU in GiB, as nvidia-smi tells it; 0 where it does not."""
    try:
        return min(map(float, _ask_nvidia_smi("memory.total"))) / 1024
    except ValueError:
        return 0.0


def gpus_can_be_shared() -> bool:
    """Whether several processes may use a GPU at once: some clusters set its compute mode to Exclusive_Process."""
    return all(mode == "Default" for mode in _ask_nvidia_smi("compute_mode"))


def _ask_nvidia_smi(field: str) -> list[str]:
    """What nvidia-smi says of each GPU; nothing where it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS_TO_ANSWER).stdout
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return [line.strip() for line in told.splitlines()]


def device_folder(device: str) -> Path:
    """The folder for the results of a device, for example docs/benchmarks/nvidia_h100_80gb_hbm3."""
    name = re.sub(r"\(R\)|\(TM\)", "", describe_device(device).partition(",")[0])
    return BENCHMARKS / re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
