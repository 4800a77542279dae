"""`glioma-dist bench`: measure time and memory of a training step, and of a prediction."""

from __future__ import annotations

import os
import sys

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_file, check_shards
from glioma_dist.config.benchmark import PredictionConfig, ResolutionConfig, SpatialParallelConfig
from glioma_dist.config.gpu_benchmarks import ProofConfig, ScalingConfig
from glioma_dist.distributed.joining import check_place
from glioma_dist.distributed.launcher import check_launch_file
from glioma_dist.errors import InputError


def check_one_process(_: object) -> None:
    """Raises InputError in a launch of several processes: what needs them is launched by the benchmark itself."""
    check_place(os.environ)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("this benchmark runs in one process, on one device; launch it with --num_processes 1")


def check_resolution(config: ResolutionConfig) -> None:
    """Raises InputError if the shards are missing, and for a launch of several processes."""
    check_one_process(config)
    if config.data not in ("drawn", "none"):
        check_shards("--data", config.data)


def check_spatial_parallel(config: SpatialParallelConfig) -> None:
    """Raises InputError if the launch file is missing or cannot be used, and for a launch of several processes."""
    check_one_process(config)
    if config.launch_file is not None:
        check_file("--launch-file", config.launch_file)
        check_launch_file("--launch-file", config.launch_file)


def check_scaling(config: ScalingConfig) -> None:
    """Raises InputError if the shards are missing, and for a launch of several processes."""
    check_one_process(config)
    if config.data != "drawn":
        check_shards("--data", config.data)


def run_proof(config: ProofConfig) -> None:
    """Run the checks; exit code 1 if a line failed."""
    from glioma_dist.benchmark.proof.prove import prove

    if any(line.status == "FAIL" for line in prove(config)):
        sys.exit(1)


def run_scaling(config: ScalingConfig) -> None:
    """Measure every launch; exit code 1 if one failed."""
    from glioma_dist.benchmark.scaling import bench

    if any(row["status"] == "failed" for row in bench(config)):
        sys.exit(1)


def run_resolution(config: ResolutionConfig) -> None:
    """Measure every cell; exit code 1 if one failed."""
    from glioma_dist.benchmark.resolution import bench

    if any(row["status"] == "failed" for row in bench(config)):
        sys.exit(1)


def run_prediction(config: PredictionConfig) -> None:
    """Measure every cell; exit code 1 if one failed."""
    from glioma_dist.benchmark.prediction import bench

    if any(row["status"] == "failed" for row in bench(config)):
        sys.exit(1)


def run_spatial_parallel(config: SpatialParallelConfig) -> None:
    """Measure each launch."""
    from glioma_dist.benchmark.spatial_parallel_report import bench

    bench(config)


RESOLUTION = Command(
    ResolutionConfig,
    run_resolution,
    (
        "glioma-dist bench resolution --sizes 704x512 1472x1120 --out bench/resolution",
        'accelerate launch --quiet --config_file "$(glioma-dist configs gpu.yaml)" -m glioma_dist bench resolution '
        "--sizes 704x512 1472x1120 2592x1952 --baselines eager --channels-last --find-largest --out bench/gpu",
    ),
    check_resolution,
)
PREDICTION = Command(
    PredictionConfig,
    run_prediction,
    (
        "glioma-dist bench predict --sizes 704x512 --repeats 5 --out bench/predict",
        "glioma-dist bench predict --encoders mit_b3 resnet50 --baselines smp --out bench/predict_smp",
    ),
    check_one_process,
)
SPATIAL_PARALLEL = Command(
    SpatialParallelConfig,
    run_spatial_parallel,
    (
        "glioma-dist bench spatial-parallel --out bench/spatial_parallel",
        "glioma-dist bench spatial-parallel --sizes 704x512 --spatial-parallel 1 2 --out bench/two_strips",
    ),
    check_spatial_parallel,
)
PROOF = Command(
    ProofConfig,
    run_proof,
    (
        "glioma-dist bench gpu",
        "glioma-dist bench gpu --checks preflight memory --out runs/proof",
        "glioma-dist bench gpu --device cpu --out runs/rehearsal",
    ),
    check_one_process,
)
SCALING = Command(
    ScalingConfig,
    run_scaling,
    (
        "glioma-dist bench scaling",
        "glioma-dist bench scaling --engines ddp --num-gpus 1 2 4 8 --sizes 1472x1120 --out bench/ddp",
    ),
    check_scaling,
)
