"""The flags of the commands for a new GPU: `glioma-dist bench gpu`, `glioma-dist bench scaling`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glioma_dist.config.model import ModelConfig
from glioma_dist.config.paths import LocalPath
from glioma_dist.config.scale import strip_edges
from glioma_dist.errors import InputError
from glioma_dist.files import check_new_folder
from glioma_dist.limits import check_batch_size, check_workers
from glioma_dist.size import Size, SizeFlag


@dataclass(frozen=True)
class ProofConfig:
    """Check that training works on this machine's GPUs: numbers, memory, kernels, resuming, several GPUs. Takes at most
    ten minutes on one GPU. Writes proof.json and proof.md with PASS, FAIL or SKIPPED for each line."""

    device: Literal["cuda", "cpu"] = "cuda"
    """cuda: check this machine's GPUs. cpu: rehearse the checks at tiny sizes, with two processes in place of two
    GPUs."""
    checks: tuple[str, ...] = ()
    """Names of the checks to run, for example preflight memory (docs/benchmarks/README.md lists them). By default:
    all."""
    out: Path | None = None
    """Folder for proof.json, proof.md and logs/. By default: a folder in docs/benchmarks/ named after the device."""

    def validate(self) -> None:
        if self.out is not None:
            check_new_folder("--out", self.out)


@dataclass(frozen=True)
class ScalingConfig:
    """Measure images per second, memory and the time spent waiting for data for each number of GPUs, with DDP, FSDP2
    and spatial parallelism. Writes JSON, CSV, Markdown tables and plots. Run the same command again to continue."""

    sizes: tuple[SizeFlag, ...] = (Size(704, 512), Size(1472, 1120), Size(2592, 1952))
    """Image sizes to measure."""
    num_gpus: tuple[int, ...] = ()
    """Numbers of GPUs to measure. By default: 1, 2, 4, … and all GPUs of this machine."""
    engines: tuple[Literal["ddp", "fsdp2", "spatial"], ...] = ("ddp", "fsdp2", "spatial")
    """ddp and fsdp2: each GPU has its own images. spatial: all GPUs share each image."""
    encoder: str = "mit_b3"
    """The U-Net's encoder."""
    level: Literal["none", "selective", "full", "offload"] = "selective"
    """Level of activation checkpointing."""
    batch_size: int = 1
    """Images in a step: per GPU with ddp and fsdp2, over all GPUs together with spatial."""
    repeats: int = 20
    """Number of timed steps."""
    warm_up: int = 10
    """Number of steps before the timed ones. Give at least 2 x --workers to measure the speed of data loading, because
    each worker prepares two batches ahead."""
    data: LocalPath = "drawn"
    """Where images come from: a folder of shards, or drawn (synthetic images of the microscope's size)."""
    workers: int = 4
    """Worker processes per GPU that load data."""
    timeout_s: float = 600.0
    """Time limit in seconds for one launch."""
    out: Path | None = None
    """Folder for scaling.json, .csv, .md and plots. By default: a folder in docs/benchmarks/ named after the device."""

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
            largest = max(self.num_gpus, default=1)
            for size in self.sizes:
                try:
                    strip_edges(size.height, largest)
                except InputError as error:
                    raise InputError(
                        f"--num-gpus {largest}: an image of {size.height} rows cannot be split into that many strips; "
                        "give fewer GPUs, larger --sizes, or --engines ddp fsdp2"
                    ) from error
