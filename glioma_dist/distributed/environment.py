"""What a result was computed with: commit, libraries, driver, devices."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch

import glioma_dist

LIBRARIES = ("accelerate", "timm", "numpy", "albumentations", "opencv-python-headless")
"""Libraries besides torch and this package whose version can change a result of a run."""
SECONDS_FOR_GIT = 10
MAX_TEXT_BYTES = 2**20


def find_commit(repository: Path) -> str | None:
    """The repository's commit, with "-dirty" where tracked files differ from it; None without git. Pages and results in
    docs do not count: a benchmark that has written there is followed by others of the same code."""
    commit = _git(repository, "rev-parse", "--short", "HEAD")
    changed = _git(repository, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs")
    return None if commit is None or changed is None else f"{commit}-dirty" if changed else commit


def _git(repository: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *command],
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS_FOR_GIT,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


@lru_cache
def find_own_commit() -> str | None:
    """The commit of this package: of its clone, or the one that pip fetched; None if neither is known."""
    root = Path(glioma_dist.__file__).resolve().parents[1]
    if (root / ".git").exists():  # otherwise git would find another project's repository above
        return find_commit(root)
    with suppress(metadata.PackageNotFoundError, OSError, ValueError, AttributeError):
        told = metadata.distribution("glioma-dist").read_text("direct_url.json")
        return json.loads(told or "{}").get("vcs_info", {}).get("commit_id")
    return None


def find_version(library: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(library)


def versions() -> dict[str, str | None]:
    """Versions of Python, libraries and drivers by name; None for those that are not installed."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        "glioma_dist": glioma_dist.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "driver": find_driver(),
        **{library: find_version(library) for library in LIBRARIES},
    }


def find_driver(table: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of NVIDIA's kernel driver; None if there is none or it cannot be read."""
    with suppress(OSError):
        with open(table, encoding="utf-8", errors="replace") as file:
            found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", file.read(MAX_TEXT_BYTES))
        return found[1] if found else None
    return None


def processor_name(table: Path = Path("/proc/cpuinfo")) -> str:
    """The model of the CPU; if the system does not tell it, its architecture."""
    with suppress(OSError):
        with open(table, encoding="utf-8", errors="replace") as file:
            found = re.search(r"^model name\s*: (.+)$", file.read(MAX_TEXT_BYTES), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The name of a GPU that this process uses, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
