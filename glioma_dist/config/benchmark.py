"""What the benchmarks are asked: `glioma-dist bench resolution`, `glioma-dist bench spatial-parallel`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Literal

from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.config.model import ModelConfig
from glioma_dist.config.paths import LocalPath
from glioma_dist.config.scale import check_spatial_parallel, strip_edges
from glioma_dist.errors import InputError
from glioma_dist.files import check_new_folder
from glioma_dist.registry import encoders
from glioma_dist.size import Size, SizeFlag

SIDE_STEP = 32
"""Sides of images that segmentation_models.pytorch takes are multiples of it."""
NATIVE = Size(2592, 1952)
"""Of the microscope's images, cut to multiples of 32."""


@dataclass(frozen=True)
class ResolutionConfig:
    """Time and peak memory of a training step at each size: JSON, CSV, a Markdown table and two plots."""

    sizes: tuple[SizeFlag, ...]
    """Sizes of an image, as 704x512 1472x1120 2592x1952."""
    encoder: str = "mit_b3"
    """The U-Net's encoder."""
    levels: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")
    """What is computed a second time in the backward pass, as --scale.activation-checkpointing."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ()
    """By default bf16 on a GPU, fp32 on a CPU."""
    baselines: tuple[Literal["smp", "eager"], ...] = ()
    """Measured beside ours. smp: segmentation_models.pytorch (pip install 'glioma-dist[bench]'). eager: our U-Net with
    transformers' attention as it is written, without a fused kernel."""
    batch_size: int = 1
    """Images in a step."""
    repeats: int = 5
    """Steps that are timed; the median counts."""
    warm_up: int = 2
    """Steps before those."""
    channels_last: bool = False
    """Measure our levels in this layout too."""
    data: LocalPath = "drawn"
    """Images a second are measured on a batch at hand, and again with data loading: from this folder of shards, or
    from images drawn at the microscope's size. none omits that."""
    workers: int = 2
    """Processes that load data."""
    find_largest: bool = False
    """Also look for the largest size, and the largest batch of the largest of --sizes, that train here."""
    max_megapixels: float = 100.0
    """How far that search goes, over all images of a batch."""
    timeout_s: float = 600.0
    """For a cell, from the start of its process; a cell that takes longer is ended, which is a result, too."""
    out: Path = Path("docs/benchmarks/resolution")
    """A new folder for resolution.json, .csv, .md, memory.png and speed.png."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        metadata = (
            ("max_megapixels", self.find_largest, "without --find-largest"),
            ("workers", self.data != "none", "with --data none"),
            ("channels_last", bool(self.levels), "without --levels"),
        )
        return idle_flags(self, metadata)

    def validate(self) -> None:
        ModelConfig(encoder=self.encoder).validate()
        for name in ("batch_size", "repeats", "timeout_s", "max_megapixels"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: give more than 0")
        if min(self.warm_up, self.workers) < 0:
            raise InputError(f"--warm-up {self.warm_up} --workers {self.workers}: give 0 or more")
        if not self.sizes:
            raise InputError("--sizes: give one or more, as 704x512 1472x1120")
        if not self.levels and not self.baselines:
            raise InputError("--levels: give one or more, or --baselines")
        if "smp" in self.baselines:
            self._validate_smp()
        if (self.out / "resolution.json").exists():
            raise InputError(f"--out {self.out} holds a benchmark already; give another folder")

    def _validate_smp(self) -> None:
        if util.find_spec("segmentation_models_pytorch") is None:
            raise InputError(
                "--baselines smp: segmentation_models.pytorch is not here; pip install 'glioma-dist[bench]'"
            )
        if encoders.find(self.encoder).smp_name is None:
            raise InputError(f"--baselines smp: it has no {self.encoder}; give another --encoder, as mit_b0")
        odd = [str(size) for size in self.sizes if size.width % SIDE_STEP or size.height % SIDE_STEP]
        if odd:
            raise InputError(f"--sizes {' '.join(odd)}: --baselines smp takes multiples of {SIDE_STEP} only")


@dataclass(frozen=True)
class SpatialParallelConfig:
    """A JSON file and a Markdown table of memory, time and traffic against the number of strips."""

    sizes: tuple[SizeFlag, ...] = (Size(1472, 1120),)
    """Sizes of an image that are measured."""
    spatial_parallel: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes that share an image."""
    levels: tuple[Literal["none", "selective", "full"], ...] = ("none", "full")
    """Levels of activation checkpointing."""
    encoder: str = "mit_b0"
    """The encoder of the U-Net that is measured."""
    repeats: int = 2
    """Steps that are timed; the median counts."""
    warm_up: int = 1
    """Steps before those."""
    launch_file: Path | None = None
    """File for accelerate launch; by default accelerate_configs/spatial_parallel.yaml on GPUs, cpu_2_processes.yaml
    without."""
    foretold_encoder: str = "mit_b3"
    """The encoder of the U-Net whose traffic is counted."""
    foretold_size: SizeFlag = NATIVE
    """Size of the image whose traffic is counted, in bf16."""
    tflop_s: float = 100.0
    """What a GPU computes in a second, sustained, to compare the time of sending with."""
    out: Path = Path("docs/benchmarks/spatial_parallel")
    """A new folder for spatial_parallel.json and spatial_parallel.md."""

    def validate(self) -> None:
        for name in (self.encoder, self.foretold_encoder):
            ModelConfig(encoder=name).validate()
            check_spatial_parallel(max(self.spatial_parallel, default=1), name)
        if not self.spatial_parallel or min(self.spatial_parallel) < 1 or not self.levels:
            raise InputError("--spatial-parallel, --levels: give one or more, as 1 2 4")
        for size in (*self.sizes, self.foretold_size):
            strip_edges(size.height, max(self.spatial_parallel))
        if self.repeats < 1 or self.warm_up < 0 or not self.tflop_s > 0:
            raise InputError("--repeats and --tflop-s: give more than 0, --warm-up 0 or more")
        check_new_folder("--out", self.out)
        if (self.out / "spatial_parallel.json").exists():
            raise InputError(f"--out {self.out} holds a benchmark already; give another folder")
