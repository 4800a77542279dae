"""Images a second of the loader beside webdataset's own pipeline and a plain folder of PNGs.

All decode the same images, make the same changes, and hand normalised fp32 batches to the training process. The others
are told that the images are grey, for that is the least work for them.
"""

import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import psutil
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from glioma_dist.benchmark.environment import describe_device, find_commit, find_device, find_version
from glioma_dist.cli.arguments import parse
from glioma_dist.config import DataConfig
from glioma_dist.data.loader import image_tensor, prepare_training_sample, training_batches
from glioma_dist.data.sample import Sample, encode_image, encode_mask
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader, ShardWriter
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.distributed.context import keep_freed_memory
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.files import make_folder, write_atomically, write_json_atomically
from glioma_dist.model.unet import normalise
from glioma_dist.size import Size

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "webdataset", "opencv-python-headless", "pillow", "glioma-dist")
SAMPLES_PER_SHARD = 4
SHUFFLE_BUFFER = 16
WARM_UP = 4
"""Batches of each process before the clock runs: until then memory is still asked from the system, page by page."""
LIVECELL, NATIVE = Size(704, 520), Size(2592, 1944)
CASES = {
    "LIVECell 704x520 into 1472x1120": DataConfig(
        size=Size(1472, 1120), transform="random-resized-crop", augment=("flips",), workers=0
    ),
    "native 2592x1944, crops of 1472x1120": DataConfig(
        size=Size(1472, 1120), transform="random-crop", augment=("flips",), workers=0
    ),
}
Pipeline = Literal["glioma-dist", "glioma-dist, cached in memory", "webdataset", "PNG folder"]
PIPELINES: tuple[Pipeline, ...] = ("glioma-dist", "glioma-dist, cached in memory", "webdataset", "PNG folder")
Batches = Iterator[tuple[Tensor, Tensor]]
"""Images (B, 3, H, W) fp32, normalised, and masks (B, H, W) uint8."""


@dataclass(frozen=True)
class BenchConfig:
    """Images a second of the loader beside its baselines, and whether its memory stays as it is: JSON and a table."""

    livecell: Path | None = None
    """Folder of shards with images like LIVECell's; by default they are drawn."""
    native: Path | None = None
    """Folder of shards with images of the microscope's size; by default they are drawn."""
    workers: tuple[int, ...] = (0, 2)
    batch_size: int = 4
    num_images: int = 48
    """Timed in each round."""
    rounds: int = 3
    """Every pipeline once a round, one after the other; the median counts."""
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
    """The same `count` samples as shards and as a folder of PNGs; those given are repeated as often as needed."""
    reader = ShardReader(given) if given else None
    places = [(shard, place) for shard, n in enumerate(reader.shard_sizes) for place in range(n)] if reader else []
    drawn = [] if reader else [draw_sample(number, size) for number in range(4)]
    (folder / "pngs").mkdir(parents=True)
    with ShardWriter(folder / "shards", "bench", "train", "-", samples_per_shard=SAMPLES_PER_SHARD) as writer:
        for number in range(count):
            sample = reader.read(*places[number % len(places)]) if reader else drawn[number % len(drawn)]
            sample = replace(sample, key=f"{number:05d}")
            writer.write(sample)
            (folder / "pngs" / f"{sample.key}.png").write_bytes(encode_image(sample.image))
            (folder / "pngs" / f"{sample.key}.mask.png").write_bytes(encode_mask(sample.mask))


def prepare(image: np.ndarray, mask: np.ndarray, config: DataConfig, seed: int) -> tuple[Tensor, Tensor]:
    """What the other loaders' workers make of a sample: the same changes as ours, then normalised fp32 (3, H, W)."""
    sample = Sample("other", normalize_intensity(image, config.intensity_normalization), mask)
    image, mask = prepare_training_sample(sample, config, seed)
    return normalise(image_tensor(image)[None])[0], torch.from_numpy(mask)


def ours(folder: Path, config: DataConfig, batch_size: int) -> Batches:
    """Our loader, and the normalising that the training loop does with its batches."""
    reader = ShardReader(folder / "shards")
    order = DeterministicSampler(reader.shard_sizes, batch_size, seed=0)
    for batch in training_batches(reader, order, config, 0, 0, 1):
        yield normalise(batch.images), batch.masks


def webdatasets(folder: Path, config: DataConfig, batch_size: int) -> Batches:
    """webdataset as its documentation has it: shuffled shards and samples, decoded by PIL, batched in the workers."""

    def change(sample: dict) -> tuple[Tensor, Tensor]:
        image, mask = np.asarray(sample["png"]), np.asarray(sample["mask.png"])
        return prepare(image, (mask > 0).astype(np.uint8), config, int(sample["__key__"]))

    urls = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE_BUFFER).decode("pill").map(change)
    loader = webdataset.WebLoader(
        dataset.batched(batch_size, partial=False).repeat(), batch_size=None, num_workers=config.workers
    )
    yield from ((images, masks) for images, masks in loader)


class PngFolder(Dataset):
    """A plain folder of PNGs, as most training scripts read it."""

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.config = config
        self.paths = sorted(path for path in folder.glob("*.png") if not path.name.endswith(".mask.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        path = self.paths[number]
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        mask = cv2.imread(str(path.with_suffix(".mask.png")), cv2.IMREAD_GRAYSCALE)
        return prepare(image, (mask > 0).astype(np.uint8), self.config, number)


def png_folders(folder: Path, config: DataConfig, batch_size: int) -> Batches:
    """PyTorch's loader over a folder of PNGs, epoch after epoch, its workers kept."""
    dataset = PngFolder(folder / "pngs", config)
    loader = DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    while True:
        yield from loader


MAKERS: dict[Pipeline, Callable[[Path, DataConfig, int], Batches]] = {
    "glioma-dist": ours,
    "glioma-dist, cached in memory": lambda folder, config, size: ours(
        folder, replace(config, cache_in_memory=True), size
    ),
    "webdataset": webdatasets,
    "PNG folder": png_folders,
}


def processor_seconds() -> float:
    """What this process and its workers have taken of the processors so far; unlike time by the clock, hardly more on a
    busy machine."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True)))


def resident_mib() -> float:
    """Memory that this process holds."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measure(maker: Callable, folder: Path, config: DataConfig, batch_size: int, num_images: int) -> dict[str, float]:
    """From a loader that runs: images a second, milliseconds of processor time for each, and how many MiB this process
    grew by in the second half."""
    batches = maker(folder, config, batch_size)
    for _ in islice(batches, WARM_UP * (1 + config.workers)):
        pass
    num_batches = -(-num_images // batch_size)
    start, start_processor, half = time.perf_counter(), processor_seconds(), 0.0
    for number, (images, masks) in enumerate(islice(batches, num_batches)):
        assert images.dtype == torch.float32
        assert images.shape == (batch_size, 3, config.size.height, config.size.width)
        assert masks.shape == images.shape[:1] + images.shape[2:]
        if number == num_batches // 2:
            half = resident_mib()
    seconds = time.perf_counter() - start
    busy, grown = processor_seconds() - start_processor, resident_mib() - half
    batches.close()
    delivered = num_batches * batch_size
    return {"images_per_second": delivered / seconds, "processor_ms": 1000 * busy / delivered, "grown_mib": grown}


def measure_case(case: str, folder: Path, bench: BenchConfig) -> list[dict]:
    """Every pipeline and number of workers of one case, round by round."""
    ways = [(pipeline, workers) for workers in bench.workers for pipeline in PIPELINES]
    found: dict[tuple, list[dict]] = {way: [] for way in ways}
    for number in range(bench.rounds):
        for pipeline, workers in ways:
            config = replace(CASES[case], workers=workers)
            found[pipeline, workers].append(
                measure(MAKERS[pipeline], folder, config, bench.batch_size, bench.num_images)
            )
            rate = found[pipeline, workers][-1]["images_per_second"]
            print(f"{case}, round {number + 1}: {pipeline}, {workers} workers: {rate:.1f} images/s", flush=True)
    return [
        {
            "case": case,
            "pipeline": pipeline,
            "workers": workers,
            "images_per_second": statistics.median(one["images_per_second"] for one in rounds),
            "all_rounds": [round(one["images_per_second"], 2) for one in rounds],
            "processor_ms": statistics.median(one["processor_ms"] for one in rounds),
            "grown_mib": statistics.median(one["grown_mib"] for one in rounds),
        }
        for (pipeline, workers), rounds in found.items()
    ]


def table(rows: list[dict], metadata: dict) -> str:
    """Markdown: images a second, and how many times webdataset's of as many workers that is."""
    baselines = {(row["case"], row["workers"]): row for row in rows if row["pipeline"] == "webdataset"}
    lines = [
        f"{metadata['device']}, {metadata['cores']} cores, load {metadata['load']:.1f} before; {metadata['versions']}; "
        f"commit {metadata['commit']}; `{metadata['command']}`",
        "",
        "| images | pipeline | workers | images/s | of webdataset's | CPU ms per image | MiB grown |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = row["images_per_second"] / baselines[row["case"], row["workers"]]["images_per_second"]
        lines.append(
            f"| {row['case']} | {row['pipeline']} | {row['workers']} | {row['images_per_second']:.1f} | {ratio:.2f} "
            f"| {row['processor_ms']:.1f} | {row['grown_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def bench(config: BenchConfig) -> list[dict]:
    """Measure, print the table, and write it. Returns its rows."""
    keep_freed_memory()  # as every training does
    torch.set_num_threads(1)  # the cores are for the workers
    metadata = {
        "device": describe_device(find_device()),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": ", ".join(f"{library} {find_version(library)}" for library in LIBRARIES),
        "commit": find_commit(REPOSITORY),
        "command": shlex.join(sys.argv),
        "config": {name: str(value) for name, value in asdict(config).items()},
    }
    # Whole shards for every worker of webdataset's, which has nothing for one without.
    count = SAMPLES_PER_SHARD * max(8, 2 * max(config.workers))
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
