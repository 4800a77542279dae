"""What the machine has, before anything else is tried: driver, versions, capability, flags."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from contextlib import suppress

import torch

from glioma_dist.benchmark.environment import find_version
from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.distributed.environment import find_driver
from glioma_dist.errors import one_line

LEAST_CAPABILITY = 8.0
"""Ampere's: the first with bf16 units and fused bf16 attention."""
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Of CUDA's main version: the oldest branch of the driver for Linux that it runs on (NVIDIA, CUDA Compatibility, "Minor
Version Compatibility")."""
LEAST_TORCH = 208
"""The lowest that pyproject.toml takes: 100 x main + minor version."""
LEAST_CUDNN = 90300
"""Convolutions beyond 2^31 numbers."""
LIBRARIES = ("torch", "accelerate", "timm", "triton", "nvidia-nccl-cu13", "glioma-dist")


def look(setting: Setting, findings: Findings) -> None:
    """Each line is a thing that makes later ones slow or wrong."""
    main, minor = map(int, torch.__version__.split(".")[:2])
    versions = ", ".join(f"{name} {version}" for name in LIBRARIES if (version := find_version(name)))
    findings.at_least(
        "PyTorch",
        100 * main + minor,
        LEAST_TORCH,
        "of 100 x main + minor version",
        f"Python {platform.python_version()}, {versions}",
    )
    flags = {
        "matmul TF32": torch.backends.cuda.matmul.allow_tf32,
        "cuDNN TF32": torch.backends.cudnn.allow_tf32,
        "cuDNN benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    told = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in flags.items())
    findings.equal("deterministic algorithms by default", int(flags["deterministic"]), 0, note=f"before a run: {told}")
    computed = float((torch.ones(64, 64, device=setting.device) @ torch.ones(64, 64, device=setting.device)).sum())
    findings.equal("a product on the device", computed, 64.0**3)
    if setting.device == "cpu":
        for name in ("driver", "compute capability", "cuDNN", "memory"):
            findings.skipped(name, "there is no GPU in this run")
        return
    properties = torch.cuda.get_device_properties(0)
    findings.at_least("driver", driver_version(), _least_driver(), note=f"CUDA {torch.version.cuda}")
    capability = float(f"{properties.major}.{properties.minor}")
    told = f"{torch.cuda.device_count()} x {properties.name}, {properties.multi_processor_count} multiprocessors"
    findings.at_least("compute capability", capability, LEAST_CAPABILITY, note=told)
    findings.at_least("cuDNN", torch.backends.cudnn.version() or 0, LEAST_CUDNN)
    free, total = torch.cuda.mem_get_info()
    findings.at_least(
        "memory", free / total, 0.9, "of it free", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
    )


def why_no_gpu(reason: str) -> str:
    """What this machine has where PyTorch can use no GPU, and what to do, in one line. reason: as PyTorch tells it."""
    cuda, driver = torch.version.cuda, full_driver_version()
    built = f"for CUDA {cuda}" if cuda else "built without CUDA"
    found = f"NVIDIA driver {driver}" if driver else "no NVIDIA driver found"
    needed = _least_driver()
    if not cuda:
        remedy = "install a PyTorch for CUDA (pytorch.org has the command)"
    elif driver is None:
        remedy = f"install driver {needed} or newer; in a container, start it with its GPUs (docker run --gpus all)"
    elif driver_version() < needed:
        remedy = f"CUDA {cuda} needs driver {needed} or newer: update it, or install a PyTorch for an older CUDA"
    else:
        remedy = "the driver is new enough: see whether nvidia-smi -L lists a GPU, and CUDA_VISIBLE_DEVICES names it"
    said = f" ({one_line(reason, 120)})" if reason and cuda else ""
    return (
        f"PyTorch can use no GPU{said}: torch {torch.__version__} {built}, {found}; {remedy}, or try the checks on the "
        "CPU with --device cpu"
    )


def driver_version() -> float:
    """The driver's branch: 580 of 580.65.06; nan where nothing tells it."""
    branch = re.match(r"\d+", full_driver_version() or "")
    return float(branch[0]) if branch else float("nan")


def full_driver_version() -> str | None:
    """The driver's version, as the system or nvidia-smi tells it; None where neither does. Some containers have a GPU
    and no nvidia-smi, and WSL2 has no file of the driver's."""
    told = find_driver()
    if told is None and shutil.which("nvidia-smi") is not None:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace", timeout=30)
            found = re.match(r"\s*(\d+(?:\.\d+)+)", done.stdout)
            told = found and found[1]
    return told


def _least_driver() -> int:
    """The oldest branch of the driver for the CUDA that PyTorch is built for."""
    cuda = int((torch.version.cuda or "0").split(".")[0])
    return LEAST_DRIVER.get(cuda, max(LEAST_DRIVER.values()))
