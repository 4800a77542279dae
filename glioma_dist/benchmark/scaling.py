"""Measure speed and memory by the number of GPUs: `glioma-dist bench scaling`.

Each row is a launch of its own, a real training of some steps, and is written as soon as it is measured.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from glioma_dist.benchmark.devices import LIBRARIES, count_gpus, device_folder
from glioma_dist.benchmark.drawn_shards import drawn_or_given
from glioma_dist.benchmark.environment import describe_code, describe_device, find_device, find_version
from glioma_dist.benchmark.launching import FSDP2, THREADS, start_ranks, wait_for
from glioma_dist.benchmark.peak_speed import step_operations, utilisation
from glioma_dist.benchmark.rows import Rows, results_folder
from glioma_dist.benchmark.scaling_cell import ScalingCell
from glioma_dist.config.gpu_benchmarks import ScalingConfig
from glioma_dist.config.scale import strip_edges
from glioma_dist.distributed.launched import USE_CPU, without_launch
from glioma_dist.errors import OUT_OF_MEMORY, ExitCode, InputError, one_line, says_memory_is_full
from glioma_dist.size import Size

CELL_MODULE = "glioma_dist.benchmark.scaling_cell"
PRECISION = "ACCELERATE_MIXED_PRECISION"
NUM_DRAWN = 16
CPU_PROCESSES = (1, 2)
SECONDS_AFTER_FAILURE = 30.0
"""That the other processes of a launch have to end by themselves. Over NCCL they wait for the one that failed until
their launcher ends them."""


def bench(config: ScalingConfig) -> list[dict]:
    """Measure the launches that have no row yet, and write the results. Returns all rows.

    Raises InputError if the folder holds rows of another device, other versions or other code.
    """
    from glioma_dist.report.scaling import write_report

    device = find_device()
    there = count_gpus()[0] if device == "cuda" else max(CPU_PROCESSES)
    conditions = {
        "device": describe_device(device, None if THREADS.keys() <= os.environ.keys() else 1),
        "versions": {library: find_version(library) for library in LIBRARIES},
        **describe_code(),
    }
    metadata = {**conditions, "command": shlex.join(["glioma-dist", *sys.argv[1:]]), "data": str(config.data)}
    out = config.out or device_folder(device)
    with results_folder(out):
        rows = Rows(out / "scaling.json", conditions)
        rows.report(write_report)
        with drawn_or_given(config.data, max(NUM_DRAWN, config.batch_size * there)) as shards:
            try:
                for cell in make_cells(config, device, there):
                    name = asdict(cell) | {"data": metadata["data"]}
                    rows.get(name, lambda cell=cell: measure(cell, shards, device, there, config.timeout_s) | metadata)
            finally:
                rows.report(write_report)
        print(f"{len(rows.rows)} rows, a table and plots are in {out}", flush=True)
        return rows.rows


def make_cells(config: ScalingConfig, device: str, there: int) -> Iterator[ScalingCell]:
    """All launches. The launch on one GPU is the same for every engine, so it is measured once."""
    numbers = config.num_gpus or tuple(sorted({*(2**power for power in range(there.bit_length())), there}))
    for size in config.sizes:
        for number in numbers:
            for engine in ("single",) if number == 1 else config.engines:
                yield ScalingCell(
                    engine=engine,
                    num_gpus=number,
                    size=str(size),
                    encoder=config.encoder,
                    level=config.level,
                    precision="bf16" if device == "cuda" else "fp32",
                    images=config.batch_size * (1 if engine == "spatial" else number),
                    repeats=config.repeats,
                    warm_up=config.warm_up,
                    workers=config.workers,
                )


def reason_to_skip(cell: ScalingCell, device: str, there: int) -> str | None:
    """Why a launch is not possible on this machine; None if it is."""
    if cell.num_gpus > there:
        return f"needs {cell.num_gpus} GPUs; there are {there}"
    if cell.engine == "fsdp2" and device == "cpu":
        return "accelerate takes FSDP2 on GPUs only"
    if cell.engine == "spatial":
        height = Size.parse(cell.size).height
        try:
            strip_edges(height, cell.num_gpus)
        except InputError:
            return f"an image of {height} rows cannot be split into {cell.num_gpus} strips"
    return None


def measure(cell: ScalingCell, shards: str, device: str, there: int, timeout_s: float) -> dict:
    """The row of a launch; if it failed, with the reason."""
    row = {"status": "skipped", **asdict(cell), "error": reason_to_skip(cell, device, there)}
    row |= dict.fromkeys(("images_per_second", "step_seconds", "waiting_share", "peak_gib", "peak_reserved_gib", "mfu"))
    row["numerics"] = None
    operations = step_operations(cell.encoder, Size.parse(cell.size), cell.images)
    row |= {"tflop": operations / 1e12, "megapixels": Size.parse(cell.size).width * Size.parse(cell.size).height / 1e6}
    if row["error"] is None:
        row |= launch(cell, shards, device, timeout_s)
    if row["status"] == "ok":
        row["mfu"] = utilisation(
            operations, row["step_seconds"], describe_device(device), cell.precision, cell.num_gpus
        )
    told = f"{row['images_per_second']:.2f} images/s" if row["status"] == "ok" else row["error"]
    print(f"{cell.size} {cell.engine} {cell.num_gpus}: {row['status']}, {told}", flush=True)
    return row


def launch(cell: ScalingCell, shards: str, device: str, timeout_s: float) -> dict:
    """Train in `cell.num_gpus` processes, and combine their measurements."""
    environment = without_launch(os.environ) | (FSDP2 if cell.engine == "fsdp2" else {})
    environment |= {USE_CPU: str(device == "cpu").lower(), PRECISION: "bf16" if cell.precision == "bf16" else "no"}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", errors="replace") as log:
        command = [sys.executable, "-m", CELL_MODULE, json.dumps(asdict(cell)), shards, folder]
        codes = wait_for(start_ranks(command, environment, cell.num_gpus, log), timeout_s, SECONDS_AFTER_FAILURE)
        log.seek(0)
        said = log.read().strip().splitlines() or ["no word"]
        # Before others: processes that wait for one without memory end in other ways, or not at all.
        if int(ExitCode.OUT_OF_MEMORY) in codes:
            told = next((line for line in reversed(said) if says_memory_is_full(line)), said[-1])
            return {"status": OUT_OF_MEMORY, "error": one_line(told, 200)}
        if -signal.SIGKILL in codes:
            return {"status": OUT_OF_MEMORY, "error": "the system ended the process"}
        if any(codes):
            return {"status": "failed", "error": one_line(f"exit codes {codes}: {said[-1]}", 300)}
        if None in codes:
            return {"status": "timed out", "error": f"not done after {timeout_s:g} s"}
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(cell.num_gpus)]
    seconds = max(each["seconds"] for each in found)
    return {
        "status": "ok",
        "images_per_second": cell.images * cell.repeats / seconds,
        "step_seconds": seconds / cell.repeats,
        "waiting_share": max(each["seconds_between"] / each["seconds"] for each in found),
        "peak_gib": [each["peak_gib"] for each in found],
        "peak_reserved_gib": [each["peak_reserved_gib"] for each in found],
        "numerics": found[0]["numerics"],
    }
