"""The runs behind the golden values, what is kept of their results, and the fingerprint of the machine."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("golden.json")
NEAR = {"rel_tol": 1e-9, "abs_tol": 1e-12}
"""What fp64 on another machine may differ by; the second for numbers that are 0 but for rounding."""
NUM_STEPS = 5
SIDE = 64
LIBRARIES = ("numpy", "opencv-python-headless", "albumentations", "transformers", "timm")
INSTRUCTIONS = ("sse4_2", "avx", "fma", "avx2", "avx512", "avx_vnni", "amx", "asimd", "sve", "bf16")
"""How the names of those CPU flags begin that decide by which code, and so in which order, numbers are added."""
VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
"""With which a user can choose other code of the same libraries."""


@dataclass(frozen=True)
class Run:
    """One small training."""

    encoder: str
    double: bool
    """In fp64, so that another machine's rounding stays below 1e-9; then nothing is resized, for OpenCV rounds to
    whole greys, and not on every CPU alike."""

    @property
    def name(self) -> str:
        return f"{self.encoder} {'fp64' if self.double else 'fp32'}"


RUNS = (Run("mit_tiny", True), Run("mobilenet_v2", True), Run("resnet50", True), Run("mit_tiny", False))


def draw(number: int, width: int = 96, height: int = 80) -> tuple[str, np.ndarray, np.ndarray]:
    """Bright discs on a noisy ground, `number` decides where, in whole numbers only: equal on every machine.

    Returns key, image uint8 (H, W), mask uint8 (H, W) of 0 and 1.
    """
    generator = np.random.default_rng(number)
    row, column = np.indices((height, width))
    mask = np.zeros((height, width), np.uint8)
    for _ in range(5):
        left, top, radius = (int(generator.integers(least, most)) for least, most in ((0, width), (0, height), (6, 14)))
        mask[(column - left) ** 2 + (row - top) ** 2 <= radius**2] = 1
    image = 60 + 90 * mask.astype(np.int64) + generator.integers(-40, 41, mask.shape)
    return f"cell-{number:03d}", image.clip(0, 255).astype(np.uint8), mask


def measure_runs(folder: Path) -> dict[str, Any]:
    """Results of all runs by name. folder: a new one, for shards and checkpoints. Call it in a process of its own:
    it sets the number of threads."""
    import adapter
    import torch

    torch.set_num_threads(1)
    for split, numbers in (("train", range(10)), ("val", range(100, 103))):
        adapter.write_shards(folder / split, map(draw, numbers))
    return {run.name: _measure(run, folder) for run in RUNS}


def _measure(run: Run, folder: Path) -> dict[str, Any]:
    import adapter

    data = {
        "train": folder / "train",
        "val": folder / "val",
        "side": SIDE,
        "resized": not run.double,
        "augment": ("flips",) if run.double else ("flips", "sharpen", "contrast", "trivial-augment"),
    }
    out = folder / run.name.replace(" ", "-")
    _, image, _ = draw(200, 75, 70)
    with default_dtype(run.double), adapter.narrow_resnet():
        rows = adapter.train(run.encoder, data, NUM_STEPS, out)
        weights, logits = adapter.trained(out, image)
    return {"metrics": rows, "weights": summary(weights), "logits": summary([logits])}


def measure_initial(encoder: str) -> dict[str, Any]:
    """What is kept of an encoder's first weights and what it makes of two images with them, all in fp64."""
    import adapter

    images = np.stack([draw(number, SIDE, SIDE)[1] for number in (300, 301)])
    with default_dtype(double=True):
        weights, logits = adapter.initial(encoder, images)
    return {"weights": summary(weights), "logits": summary([logits])}


@contextmanager
def default_dtype(double: bool) -> Iterator[None]:
    """Make new tensors fp64 within it, and so networks, images after normalising, and losses."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def summary(tensors: Iterable[Any]) -> dict[str, Any]:
    """Tensors as a few numbers: how many, sum, sum of squares, some entries (of the first, the middle and the last
    tensor), and the SHA-256 of all bytes, in their order."""
    import torch

    tensors = list(tensors)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()}
    digest, total, squares = hashlib.sha256(), 0.0, 0.0
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
        exact = tensor.to(torch.float64)
        total += exact.sum().item()
        squares += exact.square().sum().item()
    chosen = [tensors[place].flatten() for place in sorted({0, len(tensors) // 2, len(tensors) - 1})]
    return {
        "dtypes": sorted(dtypes),
        "tensors": len(tensors),
        "numbers": sum(tensor.numel() for tensor in tensors),
        "sum": total,
        "sum_of_squares": squares,
        "entries": [float(tensor[place]) for tensor in chosen for place in (0, len(tensor) // 2, -1)],
        "sha256": digest.hexdigest(),
    }


def differences(recorded: Any, found: Any, where: str = "") -> list[str]:
    """What differs between two results, hashes left out: numbers by more than 1e-9 of themselves, all else at all."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        names = [name for name in {**recorded, **found} if name != "sha256"]
        pairs = [(f"{where}.{name}", recorded.get(name), found.get(name)) for name in names]
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        pairs = [(f"{where}[{place}]", *pair) for place, pair in enumerate(zip(recorded, found, strict=True))]
    elif isinstance(recorded, float) and isinstance(found, float):
        return [] if math.isclose(recorded, found, **NEAR) else [f"{where}: {recorded!r}, now {found!r}"]
    else:
        return [] if recorded == found else [f"{where}: {recorded!r}, now {found!r}"]
    return [line for name, one, other in pairs for line in differences(one, other, name)]


def fingerprint() -> dict[str, Any]:
    """All that decides the last bit of a result: where it equals the recorded one, results must be equal bit for bit.

    The caches are in it because oneDNN and MKL cut matrices by their sizes.
    """
    import torch

    facts = _cpu_facts()
    flags = facts.get("flags", facts.get("Features", "")).split()
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return {
        "cpu": " / ".join(
            facts.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping", "model name")
        ),
        "machine": f"{platform.system()} {platform.machine()}",
        "flags": " ".join(sorted(flag for flag in flags if flag.startswith(INSTRUCTIONS))),
        "caches": " ".join(path.read_text().strip() for path in caches),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "libraries": {name: version(name) for name in LIBRARIES} | {"torch": torch.__version__},
        "libc": " ".join(platform.libc_ver()),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _cpu_facts() -> dict[str, str]:
    """The first CPU's entry in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
