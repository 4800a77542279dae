"""What a data report tells of each image: read once, several at a time, and kept as a few numbers."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from glioma_dist.data.background import coverage
from glioma_dist.data.near_duplicates import Sketch, sketch
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError, UnavailableError, printable
from glioma_dist.inference.quality import quality_flags
from glioma_dist.limits import IGNORE

MAX_THREADS = 4
MOST_COVERAGE = 0.98
NO_CELLS, FULL, FEW_CELLS = "no-cells", "full-mask", "few-cells"
FLAGS = {
    NO_CELLS: "the mask has no cell: an empty field, or one that nobody labelled",
    FULL: "cells cover more than 98 % of the picture: is the mask inverted?",
    FEW_CELLS: "two cells or fewer, where half of the images of its split have twenty or more: are all labelled?",
}
"""Flags of masks, beside those of pictures in `inference.quality`."""


@dataclass(frozen=True)
class Place:
    """Where a sample is. split: number of its folder."""

    split: int
    shard: int
    place: int


@dataclass(frozen=True)
class ReportedSample:
    """What the page tells of an image."""

    at: Place
    key: str
    file_name: str
    dataset: str
    group: str
    width: int
    height: int
    kind: str
    """Bits and channels, for example "8 bit grey"."""
    mean: float
    """Of the pixels, as a share of the highest value that they can have."""
    contrast: float
    """From the 0.5th to the 99.5th percentile, as such a share."""
    confluence: float
    labelled: float
    """Share of the pixels that somebody labelled."""
    num_cells: int | None
    pixel_size_um: float | None
    licence: str
    digest: bytes
    """SHA-256 of size, type and pixels."""
    mask_digest: bytes
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Unreadable:
    """A sample that cannot be read, and why."""

    at: Place
    reason: str


def examine(
    readers: Sequence[ShardReader], wants_flags: Sequence[bool]
) -> Iterator[tuple[ReportedSample, Sketch] | Unreadable]:
    """Read all samples of some sets in their order, in a few threads, with a bounded number of images in memory.

    wants_flags: for each sample, whether the flags of its picture are looked for, which takes most of the time.
    Raises UnavailableError if a store does not answer.
    """
    places = [
        Place(split, shard, place)
        for split, reader in enumerate(readers)
        for shard, size in enumerate(reader.shard_sizes)
        for place in range(size)
    ]
    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
    waiting: deque[tuple[Place, Future]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        for at, wanted in zip(places, wants_flags, strict=True):
            waiting.append((at, threads.submit(_examine_one, readers[at.split], at, wanted)))
            if len(waiting) > 2 * num_threads:
                yield _outcome(*waiting.popleft())
        while waiting:
            yield _outcome(*waiting.popleft())


def _outcome(at: Place, future: Future) -> tuple[ReportedSample, Sketch] | Unreadable:
    try:
        return future.result()
    except UnavailableError:
        raise
    except InputError as error:
        return Unreadable(at, str(error))


def _examine_one(reader: ShardReader, at: Place, wants_flags: bool) -> tuple[ReportedSample, Sketch]:
    sample = reader.read(at.shard, at.place)
    return describe(sample, at, wants_flags), sketch(sample.image)


def describe(sample: Sample, at: Place, wants_flags: bool = True) -> ReportedSample:
    """Return what the page tells of a sample."""
    image, mask, metadata = sample.image, sample.mask, sample.metadata
    counts = np.bincount(image.ravel(), minlength=2)
    values = np.arange(len(counts))
    highest = np.iinfo(image.dtype).max
    low, high = np.searchsorted(np.cumsum(counts), [0.005 * image.size, 0.995 * image.size])
    confluence = coverage(mask)
    flags = quality_flags(image) if wants_flags else ()
    flags += (NO_CELLS,) if confluence == 0 else (FULL,) if confluence > MOST_COVERAGE else ()
    height, width = image.shape[:2]
    return ReportedSample(
        at,
        sample.key,
        *(_text(metadata.get(name)) for name in ("file_name", "dataset", "group")),
        width,
        height,
        f"{8 * image.dtype.itemsize} bit {'grey' if image.ndim == 2 else 'RGB'}",
        float(counts @ values) / image.size / highest,
        float(high - low) / highest,
        confluence,
        np.count_nonzero(mask != IGNORE) / mask.size,
        _count(metadata.get("num_cells")),
        _size(metadata.get("pixel_size_um")),
        _text(metadata.get("licence")),
        hashlib.sha256(f"{image.shape} {image.dtype}".encode() + image.tobytes()).digest(),
        hashlib.sha256(mask.tobytes()).digest(),
        flags,
    )


def with_few_cells(samples: Sequence[ReportedSample]) -> set[int]:
    """Places, among the samples of one split, of those with hardly any cell where most have many."""
    counts = [sample.num_cells for sample in samples if sample.num_cells is not None]
    if not counts or np.median(counts) < 20:
        return set()
    return {place for place, sample in enumerate(samples) if sample.num_cells is not None and 0 < sample.num_cells <= 2}


def _text(value: object) -> str:
    return printable(value)[:300] if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 10**9 else None


def _size(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and 0 < value < 1e6 else None
