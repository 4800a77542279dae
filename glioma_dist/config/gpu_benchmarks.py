"""The flags of what is run once on a new GPU: `glioma-dist bench gpu`, `glioma-dist bench scaling`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glioma_dist.config.model import ModelConfig
from glioma_dist.config.paths import LocalPath
from glioma_dist.config.scale import SPATIAL_PARALLEL_ENCODERS, strip_edges
from glioma_dist.errors import InputError
from glioma_dist.files import check_new_folder
from glioma_dist.limits import check_batch_size, check_workers
from glioma_dist.size import Size, SizeFlag


@dataclass(frozen=True)
class ProofConfig:
    """Check on this machine, within ten minutes on one GPU, that training works as it should: numbers, memory, kernels,
    restarts, several GPUs. Writes proof.json and proof.md with PASS, FAIL or SKIPPED for each line."""

    device: Literal["cuda", "cpu"] = "cuda"
    """cuda: this machine's GPUs. cpu: a rehearsal at tiny sizes, with two processes in place of two GPUs."""
    checks: tuple[str, ...] = ()
    """Only these checks. By default: all. A wrong name is answered with the list."""
    out: Path | None = None
    """Folder for proof.json, proof.md and logs/. By default: docs/benchmarks/ and the name of the device."""

    def validate(self) -> None:
        if self.out is not None:
            check_new_folder("--out", self.out)


@dataclass(frozen=True)
class ScalingConfig:
    """Measure images per second, memory and the time spent waiting for data against the number of GPUs, for DDP, FSDP2
    and spatial parallelism. Writes JSON, CSV, a Markdown table and plots; run it again to continue."""

    sizes: tuple[SizeFlag, ...] = (Size(704, 512), Size(1472, 1120), Size(2592, 1952))
    """Image sizes to measure."""
    num_gpus: tuple[int, ...] = ()
    """Numbers of GPUs to measure. By default: 1, 2, 4, … up to all of this machine."""
    engines: tuple[Literal["ddp", "fsdp2", "spatial"], ...] = ("ddp", "fsdp2", "spatial")
    """ddp and fsdp2: each GPU has its own images. spatial: all GPUs share each image."""
    encoder: str = "mit_b3"
    """The U-Net's encoder."""
    level: Literal["none", "selective", "full"] = "selective"
    """Level of activation checkpointing."""
    batch_size: int = 1
    """Images of a step: for each GPU, or with spatial for all GPUs together."""
    repeats: int = 20
    """Number of timed steps."""
    warm_up: int = 10
    """Number of steps before the timed ones. Each worker has two batches ready: more steps than that show what data
    loading costs."""
    data: LocalPath = "drawn"
    """Where images come from: a folder of shards, or drawn (synthetic images of the microscope's size)."""
    workers: int = 4
    """Worker processes that load data, for each GPU."""
    timeout_s: float = 600.0
    """Time limit in seconds for one launch."""
    out: Path | None = None
    """Folder for scaling.json, .csv, .md and plots. By default: docs/benchmarks/ and the name of the device."""

    def validate(self) -> None:
        ModelConfig(encoder=self.encoder).validate()
        for name in ("repeats", "timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: give more than 0")
        check_batch_size(self.batch_size)
        check_workers("--workers", self.workers)
        if self.warm_up < 0:
            raise InputError(f"--warm-up {self.warm_up}: give 0 or more")
        if not self.sizes or not self.engines:
            raise InputError("--sizes, --engines: give one or more of each")
        if any(number < 1 for number in self.num_gpus):
            raise InputError(f"--num-gpus {' '.join(map(str, self.num_gpus))}: give 1 or more")
        if "spatial" in self.engines:
            if self.encoder not in SPATIAL_PARALLEL_ENCODERS:
                raise InputError(f"--engines spatial: not supported with {self.encoder}; use --engines ddp fsdp2")
            for size in self.sizes:
                strip_edges(size.height, max(self.num_gpus, default=1))
