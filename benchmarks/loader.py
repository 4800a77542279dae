"""Compares the loader with others (baselines/loaders.py): images per second, and CPU time per image.

All decode the same images, apply the same changes, and deliver batches of uint8 to the training process. With a GPU the
GPU normalises them, without one the CPU does, so both are measured: delivered, and normalised on the CPU.
"""

import math
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch

from glioma_dist.benchmark.environment import describe_device, find_commit, find_device, find_version
from glioma_dist.cli.arguments import parse
from glioma_dist.config import DataConfig
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.distributed.context import keep_freed_memory
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.files import make_folder, write_atomically, write_json_atomically
from glioma_dist.model.unet import normalise
from glioma_dist.size import Size

sys.path.insert(0, str(Path(__file__).parent))  # however this file is run or imported
from baselines.loaders import PIPELINES, SAMPLES_PER_SHARD

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "webdataset", "litdata", "mosaicml-streaming", "opencv-python-headless", "glioma-dist")
WARM_UP = 4
"""Batches of each process before the clock starts. The first batches get memory from the system page by page."""
LIVECELL, NATIVE = Size(704, 520), Size(2592, 1944)
CASES = {
    "LIVECell 704x520 into 1472x1120": DataConfig(
        size=Size(1472, 1120), transform="random-resized-crop", augment=("flips",), workers=0
    ),
    "native 2592x1944, crops of 1472x1120": DataConfig(
        size=Size(1472, 1120), transform="random-crop", augment=("flips",), workers=0
    ),
}


@dataclass(frozen=True)
class BenchConfig:
    """Compare images per second, CPU time per image and growth of memory of this loader and others. Writes JSON and a
    Markdown table."""

    livecell: Path | None = None
    """Folder of shards with images of LIVECell's size. By default: synthetic images."""
    native: Path | None = None
    """Folder of shards with images of the microscope's size. By default: synthetic images."""
    workers: tuple[int, ...] = (0, 2)
    """Numbers of worker processes to measure."""
    batch_size: int = 4
    """Images in a batch."""
    num_images: int = 48
    """Number of timed images in each round."""
    rounds: int = 3
    """Number of rounds. Each round measures every loader once; the median is reported."""
    out: Path | None = None
    """Folder for loader.json and loader.md."""

    def validate(self) -> None:
        for name in ("batch_size", "num_images", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        if not self.workers or min(self.workers) < 0:
            raise InputError("--workers: give one or more numbers, each 0 or more")


def draw_sample(number: int, size: Size) -> Sample:
    """Discs on a blurred, noisy ground: a PNG of it is about as long as one of a phase-contrast image."""
    generator = np.random.default_rng(number)
    mask = np.zeros((size.height, size.width), np.uint8)
    for x, y in generator.integers(0, (size.width, size.height), (60, 2)).tolist():
        cv2.circle(mask, (x, y), size.width // 50, 1, thickness=-1)
    noise = generator.standard_normal(mask.shape, np.float32)
    image = 110 + 30 * mask + 4 * noise + 60 * cv2.GaussianBlur(noise, (0, 0), 2)
    return Sample(f"drawn-{number:05d}", image.clip(0, 255).astype(np.uint8), mask, {"num_cells": 60})


def write_data(folder: Path, given: Path | None, size: Size, count: int) -> None:
    """Write the same `count` samples for every installed loader; given samples are repeated as often as needed."""
    reader = ShardReader(given) if given else None
    places = [(shard, place) for shard, n in enumerate(reader.shard_sizes) for place in range(n)] if reader else []
    drawn = [reader.read(*place) for place in places[:count]] or [draw_sample(number, size) for number in range(4)]
    samples = [replace(drawn[number % len(drawn)], key=f"{number:05d}") for number in range(count)]
    for pipeline in PIPELINES.values():
        if pipeline.is_there:
            pipeline.write(folder, samples)


def processor_seconds() -> float:
    """What this process and its workers have taken of the processors so far; unlike time by the clock, hardly more on a
    busy machine."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True)))


def resident_mib() -> float:
    """Memory that this process holds."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measure(batches_of: Callable, folder: Path, config: DataConfig, batch_size: int, num_images: int) -> dict:
    """Measure a running loader, first as uint8 and then normalised: images per second, and CPU milliseconds per image;
    and the growth in MiB of this process in the second part."""
    batches = batches_of(folder, config, batch_size)
    for images, _masks in islice(batches, WARM_UP * (1 + config.workers)):
        normalise(images)
    found, num_batches = {}, -(-num_images // batch_size)
    for part, finish in (("uint8", lambda images: images), ("normalised", normalise)):
        start, start_processor, held = time.perf_counter(), processor_seconds(), resident_mib()
        for images, masks in islice(batches, num_batches):
            assert images.dtype == masks.dtype == torch.uint8
            assert masks.shape == images.shape[:1] + images.shape[2:] == (batch_size, *masks.shape[1:])
            finish(images)
        seconds, busy = time.perf_counter() - start, processor_seconds() - start_processor
        delivered = num_batches * batch_size
        found[part] = {"images_per_second": delivered / seconds, "processor_ms": 1000 * busy / delivered}
    batches.close()
    return {**found, "grown_mib": resident_mib() - held}


def measure_case(case: str, folder: Path, bench: BenchConfig) -> list[dict]:
    """Every pipeline and number of workers of one case, round by round."""
    ways = [(name, workers) for workers in bench.workers for name, each in PIPELINES.items() if each.is_there]
    found: dict[tuple, list[dict]] = {way: [] for way in ways}
    for number in range(bench.rounds):
        for name, workers in ways:
            config = replace(CASES[case], workers=workers)
            one = measure(PIPELINES[name].batches, folder, config, bench.batch_size, bench.num_images)
            found[name, workers].append(one)
            rate, busy = (one["uint8"][figure] for figure in ("images_per_second", "processor_ms"))
            print(
                f"{case}, round {number + 1}: {name}, {workers} workers: {rate:.1f} images/s, CPU {busy:.1f} ms",
                flush=True,
            )
    return [
        {"case": case, "pipeline": name, "workers": workers, **sum_up(found[name, workers])} for name, workers in ways
    ]


def sum_up(rounds: list[dict]) -> dict:
    """Medians of the rounds, and every round's images a second."""
    row: dict = {"grown_mib": statistics.median(one["grown_mib"] for one in rounds)}
    for part in ("uint8", "normalised"):
        row[part] = {
            figure: statistics.median(one[part][figure] for one in rounds)
            for figure in ("images_per_second", "processor_ms")
        }
        row[part]["all_rounds"] = [round(one[part]["images_per_second"], 2) for one in rounds]
    return row


def table(rows: list[dict], metadata: dict) -> str:
    """Markdown: images a second, and how many times those of the quickest other loader of as many workers that is."""
    best: dict[tuple, float] = {}
    for row in rows:
        if not row["pipeline"].startswith("glioma-dist"):
            key, rate = (row["case"], row["workers"]), row["uint8"]["images_per_second"]
            best[key] = max(rate, best.get(key, 0.0))
    lines = [
        "# Loading data: images per second and CPU time per image",
        "",
        f"{metadata['device']}, {metadata['cores']} cores, load {metadata['load']:.1f} before; {metadata['versions']}; "
        f"commit {metadata['commit']}; `{metadata['command']}`",
        "",
        "| Images | Pipeline | Workers | Images/s | Relative to the best other | CPU time per image (ms) | Images/s, "
        "normalised on the CPU | CPU time per normalised image (ms) | Memory growth (MiB) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        (rate, busy), (later_rate, later_busy) = (
            (row[part]["images_per_second"], row[part]["processor_ms"]) for part in ("uint8", "normalised")
        )
        lines.append(
            f"| {row['case']} | {row['pipeline']} | {row['workers']} | {rate:.1f} "
            f"| {rate / best[row['case'], row['workers']]:.2f} | {busy:.1f} | {later_rate:.1f} | {later_busy:.1f} "
            f"| {row['grown_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def num_samples(config: BenchConfig) -> int:
    """Whole shards for every worker of webdataset's, which has nothing for one without, and in them a whole batch, of
    which no loader but ours delivers a part: it would look for one for ever."""
    shards_of_worker = max(2, math.ceil(config.batch_size / SAMPLES_PER_SHARD))
    return SAMPLES_PER_SHARD * max(8, shards_of_worker * max(1, *config.workers))


def bench(config: BenchConfig) -> list[dict]:
    """Measure, print the table, and write it. Returns its rows."""
    keep_freed_memory()  # as every training does
    torch.set_num_threads(1)  # the cores are for the workers
    metadata = {
        "device": describe_device(find_device()),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": ", ".join(f"{name} {version}" for name in LIBRARIES if (version := find_version(name))),
        "commit": find_commit(REPOSITORY),
        "command": shlex.join(sys.argv),
        "config": {name: str(value) for name, value in asdict(config).items()},
    }
    count = num_samples(config)
    for name, pipeline in PIPELINES.items():
        if not pipeline.is_there:
            print(f"{name}: skipped, it is not installed (pip install litdata mosaicml-streaming)")
    rows: list[dict] = []
    if config.out is not None:
        make_folder(config.out)
    with tempfile.TemporaryDirectory() as folder:
        for given, size in zip((config.livecell, config.native), (LIVECELL, NATIVE), strict=True):
            write_data(Path(folder) / str(size), given, size, count)
        for case, size in zip(CASES, (LIVECELL, NATIVE), strict=True):
            rows += measure_case(case, Path(folder) / str(size), config)
    text = table(rows, metadata)
    print(text)
    if config.out is not None:
        write_json_atomically(config.out / "loader.json", {"metadata": metadata, "rows": rows})
        write_atomically(config.out / "loader.md", text)
    return rows


def main() -> None:
    config = parse(BenchConfig)
    bench(config)


if __name__ == "__main__":
    run_command(main)
