"""What the machine has, before anything else is tried: driver, versions, capability, flags."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import torch

from glioma_dist.benchmark.environment import find_version
from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.distributed.environment import find_driver

LEAST_CAPABILITY = 8.0
"""Ampere's: the first with bf16 units and fused bf16 attention."""
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Of CUDA's main version: the oldest branch of the driver for Linux that it runs on (NVIDIA, CUDA Compatibility, "Minor
Version Compatibility")."""
LEAST_TORCH = 207
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
    cuda = int((torch.version.cuda or "0").split(".")[0])
    needed = LEAST_DRIVER.get(cuda, max(LEAST_DRIVER.values()))
    findings.at_least("driver", driver_version(), needed, note=f"CUDA {torch.version.cuda}")
    capability = float(f"{properties.major}.{properties.minor}")
    told = f"{torch.cuda.device_count()} x {properties.name}, {properties.multi_processor_count} multiprocessors"
    findings.at_least("compute capability", capability, LEAST_CAPABILITY, note=told)
    findings.at_least("cuDNN", torch.backends.cudnn.version() or 0, LEAST_CUDNN)
    free, total = torch.cuda.mem_get_info()
    findings.at_least(
        "memory", free / total, 0.9, "of it free", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
    )


def driver_version() -> float:
    """The driver's branch, as the system or nvidia-smi tells it: 580 of 580.65.06; nan where neither does. Some
    containers have a GPU and no nvidia-smi, and WSL2 has no file of the driver's."""
    told = find_driver()
    if told is None:
        if shutil.which("nvidia-smi") is None:
            return float("nan")
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    branch = re.match(r"\s*(\d+)\.", told)
    return float(branch[1]) if branch else float("nan")
