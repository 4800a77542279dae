"""CPU time per training image of masks, of classes, and of second targets made of instances, by the loader itself."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.config import DataConfig
from glioma_dist.data.loader import training_batches
from glioma_dist.data.sample import Sample
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.writer import ShardWriter
from glioma_dist.size import Size

CASES = {
    "LIVECell 704x520, resized to 704x512": (Size(704, 520), Size(704, 512)),
    "native 2592x1944, resized to 2592x1952": (Size(2592, 1944), Size(2592, 1952)),
}
KINDS = {
    "one class": ((), False, ("mask",)),
    "two classes": (("a", "b"), False, ("mask",)),
    "one class and boundary": ((), True, ("mask", "boundary")),
    "one class and distance": ((), True, ("mask", "distance")),
}
NUM_SAMPLES, NUM_CELLS, BATCH_SIZE, NUM_BATCHES = 4, 300, 2, 4


def draw(number: int, size: Size, num_classes: int) -> Sample:
    """Discs that overlap, as many as in a dense culture, on noise."""
    generator = np.random.default_rng(number)
    instances = np.zeros((size.height, size.width), np.uint16)
    for cell in range(1, NUM_CELLS + 1):
        centre = (int(generator.integers(size.width)), int(generator.integers(size.height)))
        cv2.circle(instances, centre, int(generator.integers(size.width // 100, size.width // 40)), cell, -1)
    mask = np.where(instances > 0, 1 + instances % num_classes, 0).astype(np.uint8)
    image = (60 * mask + generator.normal(90, 20, mask.shape)).clip(0, 255).astype(np.uint8)
    return Sample(f"drawn-{number}", image, mask, {}, instances)


def measure(folder: Path, case: str, kind: str) -> float:
    """CPU milliseconds per image, without workers."""
    (source, size), (classes, has_instances, targets) = CASES[case], KINDS[kind]
    labels = {"classes": classes, "has_instances": has_instances}
    with ShardWriter(folder / "train", "drawn", "train", "CC0", **labels) as writer:
        for number in range(NUM_SAMPLES):
            sample = draw(number, source, max(1, len(classes)))
            writer.write(sample if has_instances else replace(sample, instances=None))
    reader = ShardReader(folder / "train")
    config = DataConfig(size=size, augment=("flips",), workers=0)
    order = DeterministicSampler(reader.shard_sizes, BATCH_SIZE, 0)
    batches = training_batches(reader, order, config, targets=targets)
    next(batches)
    start = time.process_time()
    num_images = sum(len(batch.images) for batch in islice(batches, NUM_BATCHES))
    return 1000 * (time.process_time() - start) / num_images


def main() -> None:
    """Print a Markdown table."""
    cv2.setNumThreads(0)
    print(f"| CPU time per image (ms) | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for case in CASES:
        figures = []
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                figures.append(f"{measure(Path(folder), case, kind):.1f}")
        print(f"| {case} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
