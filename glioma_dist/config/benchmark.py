"""The flags of the benchmarks: `glioma-dist bench resolution`, `bench predict`, `bench spatial-parallel`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.config.model import ModelConfig
from glioma_dist.config.paths import LocalPath
from glioma_dist.config.scale import strip_edges
from glioma_dist.errors import InputError
from glioma_dist.extras import require
from glioma_dist.files import check_new_folder
from glioma_dist.limits import check_batch_size, check_workers
from glioma_dist.registry import encoders
from glioma_dist.size import Size, SizeFlag

SIDE_STEP = 32
"""segmentation_models.pytorch accepts image sides that are multiples of this."""
NATIVE = Size(2592, 1952)
"""Size of the microscope's images, cut to multiples of 32."""


@dataclass(frozen=True)
class ResolutionConfig:
    """Measure time and peak memory of a training step at each image size. Writes JSON, CSV, Markdown tables and two
    plots. Run the same command again to continue."""

    sizes: tuple[SizeFlag, ...]
    """Image sizes to measure, for example 704x512 1472x1120 2592x1952."""
    encoder: str = "mit_b3"
    """The U-Net's encoder."""
    levels: tuple[Literal["none", "selective", "full", "offload"], ...] = ("none", "selective", "full")
    """Levels of activation checkpointing to measure; glioma-dist train --help explains them."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ()
    """Precisions to measure. By default: bf16 on a GPU, fp32 on a CPU."""
    baselines: tuple[Literal["smp", "eager"], ...] = ()
    """Networks to compare with. smp: segmentation_models.pytorch (pip install 'glioma-dist[bench]'). eager: our U-Net
    with transformers' plain attention, without a fused kernel."""
    batch_size: int = 1
    """Images in a step."""
    repeats: int = 5
    """Number of timed steps; the median is reported."""
    warm_up: int = 2
    """Number of steps before the timed ones."""
    channels_last: bool = False
    """Also measure each level in channels-last layout."""
    data: LocalPath = "drawn"
    """Where images come from to measure the speed with data loading: a folder of shards, or drawn (synthetic images of
    the microscope's size). none: measure only with a batch that is already in memory."""
    workers: int = 2
    """Worker processes that load data."""
    find_largest: bool = False
    """Also search for the largest image size that fits this device, and for the largest batch of images of the largest
    given size."""
    max_megapixels: float = 100.0
    """Limit of the search of --find-largest: megapixels of all images of a batch together."""
    timeout_s: float = 600.0
    """Time limit in seconds for one measurement, from the start of its process. A measurement that takes longer is
    stopped and reported as such."""
    out: Path | None = None
    """Folder for resolution.json, .csv, .md and, for two sizes or more, memory.png and speed.png. By default: a folder
    in docs/benchmarks/ named after the device. The rows of an earlier run in this folder are kept and not measured
    again."""

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
        for name in ("repeats", "timeout_s", "max_megapixels"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: give more than 0")
        check_batch_size(self.batch_size)
        check_workers("--workers", self.workers)
        if self.warm_up < 0:
            raise InputError(f"--warm-up {self.warm_up}: give 0 or more")
        if not self.sizes:
            raise InputError("--sizes: give one or more, for example 704x512 1472x1120")
        if not self.levels and not self.baselines:
            raise InputError("--levels: give one or more, or --baselines")
        if "smp" in self.baselines:
            check_smp(self.encoder, self.sizes, "--encoder")
        if self.out is not None:
            check_new_folder("--out", self.out)


@dataclass(frozen=True)
class PredictionConfig:
    """Measure time and peak memory of segmenting one image at each size. Writes JSON, a Markdown table and a plot. Run
    the same command again to continue."""

    sizes: tuple[SizeFlag, ...] = (Size(704, 512), NATIVE)
    """Image sizes to measure, for example 704x512 2592x1952."""
    encoders: tuple[str, ...] = ("mit_b3",)
    """Encoders of the U-Net to measure."""
    baselines: tuple[Literal["smp"], ...] = ()
    """Networks to compare with. smp: segmentation_models.pytorch (pip install 'glioma-dist[bench]')."""
    repeats: int = 3
    """Number of timed images; the median is reported."""
    warm_up: int = 1
    """Number of images before the timed ones."""
    timeout_s: float = 3600.0
    """Time limit in seconds for one measurement, from the start of its process. A measurement that takes longer is
    stopped and reported as such."""
    out: Path | None = None
    """Folder for prediction.json and .md, and, for two sizes or more, a plot for each encoder. By default: a folder in
    docs/benchmarks/ named after the device. The rows of an earlier run in this folder are kept and not measured
    again."""

    def validate(self) -> None:
        for name in self.encoders:
            ModelConfig(encoder=name).validate()
        if not self.sizes or not self.encoders:
            raise InputError("--sizes, --encoders: give one or more of each, for example --sizes 704x512")
        if not 0 < self.timeout_s < math.inf:
            raise InputError(f"--timeout-s {self.timeout_s}: give more than 0")
        if self.repeats < 1 or self.warm_up < 0:
            raise InputError("--repeats: give 1 or more, --warm-up 0 or more")
        if "smp" in self.baselines:
            for name in self.encoders:
                check_smp(name, self.sizes, "--encoders")
        if self.out is not None:
            check_new_folder("--out", self.out)


def check_smp(encoder: str, sizes: Sequence[Size], flag: str) -> None:
    """Raises InputError where segmentation_models.pytorch is not installed, or has no such encoder or sizes.

    flag: that names the encoder.
    """
    require("bench", "--baselines smp")
    if encoders.find(encoder).smp_name is None:
        raise InputError(f"--baselines smp: it has no {encoder}; give another {flag}, for example mit_b0")
    odd = [str(size) for size in sizes if size.width % SIDE_STEP or size.height % SIDE_STEP]
    if odd:
        raise InputError(f"--sizes {' '.join(odd)}: --baselines smp takes multiples of {SIDE_STEP} only")


@dataclass(frozen=True)
class SpatialParallelConfig:
    """Measure memory, time and traffic of a step for several numbers of strips. Writes JSON and a Markdown table."""

    sizes: tuple[SizeFlag, ...] = (Size(1472, 1120),)
    """Image sizes to measure."""
    spatial_parallel: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes that share an image, each measured."""
    levels: tuple[Literal["none", "selective", "full", "offload"], ...] = ("none", "full")
    """Levels of activation checkpointing to measure."""
    encoder: str = "mit_b0"
    """The encoder of the U-Net that is measured."""
    repeats: int = 2
    """Number of timed steps; the median is reported."""
    warm_up: int = 1
    """Number of steps before the timed ones."""
    launch_file: Path | None = None
    """File for accelerate launch --config_file. By default: accelerate_configs/spatial_parallel.yaml where there are
    GPUs, else cpu_2_processes.yaml."""
    estimated_encoder: str = "mit_b3"
    """Encoder of the U-Net whose traffic is estimated without a measurement."""
    estimated_size: SizeFlag = NATIVE
    """Image size for this estimate, in bf16."""
    tflop_s: float = 100.0
    """Assumed sustained speed of a GPU in TFLOP/s; the estimate compares computing time with sending time."""
    out: Path = Path("docs/benchmarks/spatial_parallel")
    """A new folder for spatial_parallel.json and spatial_parallel.md."""

    def validate(self) -> None:
        for name in (self.encoder, self.estimated_encoder):
            ModelConfig(encoder=name).validate()
        if not self.spatial_parallel or min(self.spatial_parallel) < 1 or not self.levels:
            raise InputError("--spatial-parallel, --levels: give one or more values of each, and strips from 1")
        most = max(self.spatial_parallel)
        for flag, size in (*(("--sizes", size) for size in self.sizes), ("--estimated-size", self.estimated_size)):
            try:
                strip_edges(size.height, most)
            except InputError as error:
                raise InputError(
                    f"--spatial-parallel {most}: an image of {size.height} rows cannot be split into that many strips; "
                    f"give fewer, or a larger {flag}"
                ) from error
        if self.repeats < 1 or self.warm_up < 0 or not 0 < self.tflop_s < math.inf:
            raise InputError("--repeats and --tflop-s: give more than 0, --warm-up 0 or more")
        check_new_folder("--out", self.out)
        if (self.out / "spatial_parallel.json").exists():
            raise InputError(f"--out {self.out} holds a benchmark already; give another folder")
