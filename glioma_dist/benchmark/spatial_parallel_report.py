"""One image on several processes, by its rows: memory, time, and what is sent; `glioma-dist bench spatial-parallel`.

Each number of strips is a launch of its own. On a machine without GPUs the processes share its cores, so that the time
of a step says what the exchange costs, not what several machines gain.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from glioma_dist.benchmark.environment import describe_device, find_device, find_version
from glioma_dist.benchmark.rows import results_folder
from glioma_dist.benchmark.spatial_parallel import SpatialParallelCell
from glioma_dist.config import ModelConfig
from glioma_dist.config.benchmark import SpatialParallelConfig
from glioma_dist.config.launch_files import launch_file
from glioma_dist.distributed.children import run_child
from glioma_dist.distributed.environment import find_own_commit
from glioma_dist.distributed.launched import USE_CPU, without_launch
from glioma_dist.errors import InputError
from glioma_dist.files import write_atomically, write_json_atomically
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss
from glioma_dist.scale.device_memory import GIB
from glioma_dist.scale.operations import forward_operations
from glioma_dist.scale.planner import Step, count
from glioma_dist.scale.step_count import count_sent
from glioma_dist.scale.tile_size import largest_gpu_tile

LINKS_GB_S = {"NVLink, 450 GB/s": 450.0, "PCIe 5, 50 GB/s": 50.0, "Ethernet, 100 Gbit/s": 12.5, "10 Gbit/s": 1.25}
"""Bytes that one GPU can send in a second, at best."""
TIMES_FORWARD = 3
"""A backward pass takes two forward passes' work."""


def measured(config: SpatialParallelConfig) -> Iterator[dict]:
    """Yield a row for each size, level and number of processes that share an image, measured by a launch."""
    default = "spatial_parallel.yaml" if find_device() == "cuda" else "cpu_2_processes.yaml"
    file = config.launch_file or launch_file(default)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    for size, level, number in itertools.product(config.sizes, config.levels, config.spatial_parallel):
        cell = SpatialParallelCell(config.encoder, str(size), number, level, config.repeats, config.warm_up)
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "row.json"
            command = [
                *launch,
                "--num_processes",
                str(number),
                "-m",
                "glioma_dist.benchmark.spatial_parallel",
                json.dumps(asdict(cell)),
                str(result),
            ]
            threads = max(1, (os.cpu_count() or 1) // number)
            environment = without_launch(os.environ, keep=(USE_CPU,)) | {"OMP_NUM_THREADS": str(threads)}
            code = run_child(command, environment)
            if code:
                raise InputError(f"{shlex.join(command)} ended with {code}; its own lines say why")
            row = {**asdict(cell), **json.loads(result.read_text())}
        print(f"{size} {level} spatial-parallel {number}: {row['median_seconds']:.2f} s", flush=True)
        yield row


def estimated(config: SpatialParallelConfig) -> list[dict]:
    """A row for each number of strips and level: memory, work and bytes sent by one GPU in a bf16 step."""
    model = ModelConfig(encoder=config.estimated_encoder)
    flop = forward_operations(model, config.estimated_size)
    found = []
    for level, number in itertools.product(config.levels, config.spatial_parallel):
        step = Step(
            model,
            config.estimated_size,
            batch_size=1,
            bf16=True,
            num_devices=number,
            spatial_parallel=number,
            tile_size=largest_gpu_tile(),
            loss=partial(segmentation_loss, DEFAULT_LOSS),
        )
        halos, gathered = count_sent(step, level) if number > 1 else (0, 0)
        again = TIMES_FORWARD + (level != "none")  # upper bound: the decoder's part is computed again in "full" only
        row = {"level": level, "spatial_parallel": number, "peak_gib": count(step, level).peak / GIB}
        row |= {"tflop": again * flop / number / 1e12, "halo_mib": halos / 2**20, "gathered_mib": gathered / 2**20}
        found.append(row)
    return found


def markdown_text(metadata: dict, steps: list[dict], traffic: list[dict], config: SpatialParallelConfig) -> str:
    lines = [
        "# One image over several processes\n",
        f"{metadata['device']}; torch {metadata['torch']}; commit {metadata['commit']}.\n",
    ]
    lines += [f"```\n{metadata['command']}\n```\n", f"## Measured: U-Net {config.encoder}\n"]
    lines += [
        "| size | activation checkpointing | GPUs per image | s per step | peak GiB of each process | relative to 1 |",
        "|---|---|---:|---:|---|---:|",
    ]
    whole = {(row["size"], row["level"]): _peak(row) for row in steps if row["spatial_parallel"] == 1}
    for row in steps:
        most, of_one = _peak(row), whole.get((row["size"], row["level"]))
        share = f"{most / of_one:.2f}" if most and of_one else "–"
        peaks = ", ".join("–" if peak is None else f"{peak:.2f}" for peak in row["peak_gib"])
        place = f"| {row['size']} | {row['level']} | {row['spatial_parallel']}"
        lines.append(f"{place} | {row['median_seconds']:.2f} | {peaks} | {share} |")
    lines += [
        f"\n## Counted: U-Net {config.estimated_encoder}, {config.estimated_size}, bf16, one GPU's share of a step\n"
    ]
    lines += [
        f"The last four columns: the time to send, in percent of the time to compute at {config.tflop_s:g} TFLOP/s, if "
        "sending and computing do not overlap.\n"
    ]
    heads = ("activation checkpointing", "GPUs per image", "peak GiB", "TFLOP", "halos MiB", "keys and values MiB")
    lines += [f"| {' | '.join((*heads, *LINKS_GB_S))} |"]
    lines += ["|---|---:|---:|---:|---:|---:|" + "---:|" * len(LINKS_GB_S)]
    for row in traffic:
        compute = row["tflop"] / config.tflop_s
        sent = (row["halo_mib"] + row["gathered_mib"]) * 2**20
        shares = " | ".join(f"{100 * sent / (speed * 1e9) / compute:.1f} %" for speed in LINKS_GB_S.values())
        figures = f"{row['peak_gib']:.2f} | {row['tflop']:.2f} | {row['halo_mib']:.0f} | {row['gathered_mib']:.0f}"
        lines.append(f"| {row['level']} | {row['spatial_parallel']} | {figures} | {shares} |")
    return "\n".join(lines) + "\n"


def _peak(row: dict) -> float | None:
    """GiB of the fullest process; None where the system tells none."""
    return max((peak for peak in row["peak_gib"] if peak is not None), default=None)


def bench(config: SpatialParallelConfig) -> None:
    """Measure and count everything, and write the results; where a launch fails, those of the launches before it."""
    metadata = {
        "device": describe_device(find_device()),
        "torch": find_version("torch"),
        "commit": find_own_commit(),
        "command": shlex.join(["glioma-dist", *sys.argv[1:]]),
    }
    steps: list[dict] = []
    traffic = estimated(config)
    with results_folder(config.out):
        for row in measured(config):
            steps.append(row)
            # After each launch: the next may fail, or be killed.
            content = {"metadata": metadata, "measured": steps, "counted": traffic}
            write_json_atomically(config.out / "spatial_parallel.json", content)
            write_atomically(config.out / "spatial_parallel.md", markdown_text(metadata, steps, traffic, config))
    print(f"{config.out / 'spatial_parallel.md'}")
