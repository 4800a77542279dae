"""Whole images with normalized intensity: what all that is random in training begins with, read again or kept.

Contrast is raised on the whole image, so that a crop looks as it does at test time.
"""

from __future__ import annotations

import os
from dataclasses import replace

import psutil

from glioma_dist.config import DataConfig
from glioma_dist.data.mixture import Shards
from glioma_dist.data.sample import Sample, one_channel
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError

MOST_OF_MEMORY = 0.5
"""The share of the memory that is free at the start which kept images may take."""


class NormalizedSamples:
    """Each sample read and decoded when it is asked for."""

    def __init__(self, reader: Shards, config: DataConfig) -> None:
        self._reader, self._how = reader, config.intensity_normalization

    def read(self, shard: int, place: int) -> Sample:
        """A sample, its image uint8. Raises InputError as the reader does."""
        sample = self._reader.read(shard, place)
        return replace(sample, image=normalize_intensity(one_channel(sample.image), self._how))


class CachedSamples:
    """Samples at hand in memory, by [shard][place]. Worker processes that are forked share it with their parent."""

    def __init__(self, samples: list[list[Sample]]) -> None:
        self._samples = samples

    def read(self, shard: int, place: int) -> Sample:
        """A sample, its image uint8; not to be written to."""
        return self._samples[shard][place]


def cache_samples(reader: Shards, config: DataConfig) -> CachedSamples:
    """All samples of a reader. Raises InputError for one that cannot be read, and where they take too much memory."""
    whole = NormalizedSamples(reader, config)
    # Each process of this machine keeps its own.
    most = MOST_OF_MEMORY * psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    kept: list[list[Sample]] = []
    num_bytes = 0
    for shard, size in enumerate(reader.shard_sizes):
        kept.append([])
        for place in range(size):
            sample = whole.read(shard, place)
            num_bytes += sample.image.nbytes + sample.mask.nbytes
            kept[-1].append(sample)
            if num_bytes > most:
                raise InputError(
                    f"--data.cache-in-memory: {sum(map(len, kept))} of {len(reader)} samples take {num_bytes} bytes "
                    "already, half of this process's share of the free memory; omit the flag"
                )
    return CachedSamples(kept)
