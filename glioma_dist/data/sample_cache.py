"""Whole images with normalized intensity: what all that is random in training begins with, read again or kept.

Contrast is raised on the whole image, so that a crop looks as it does at test time.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

import numpy as np
import psutil

from glioma_dist.config import DataConfig
from glioma_dist.data.images.grey_png import RowChoice
from glioma_dist.data.mixture import Shards
from glioma_dist.data.sample import Sample, one_channel
from glioma_dist.data.shared_memory_ring import SharedMemory, anonymous_file
from glioma_dist.data.transforms import look_up, normalize_intensity, percentile_table, table_of
from glioma_dist.distributed.cgroups import free_in_cgroups
from glioma_dist.errors import InputError

MOST_OF_MEMORY = 0.5
"""The share of the memory that is free at the start, on the machine and in its cgroup, which kept images may take."""


class NormalizedSamples:
    """Each sample read and decoded when it is asked for. with_instances: see `ShardReader.read`."""

    def __init__(self, reader: Shards, config: DataConfig, with_instances: bool = False) -> None:
        self._reader, self._how, self._with_instances = reader, config.intensity_normalization, with_instances

    def read(self, shard: int, place: int) -> Sample:
        """A sample, its image uint8. Raises InputError as the reader does."""
        sample, table = self.read_with_table(shard, place)
        return replace(sample, image=look_up(sample.image, table))

    def read_with_table(
        self, shard: int, place: int, choose_rows: RowChoice | None = None
    ) -> tuple[Sample, np.ndarray | None]:
        """The same, with a table in which the values of the image have yet to be looked up; None: no table.
        choose_rows: see `ShardReader.read`."""
        needs_all = self._how == "clahe"
        sample = self._reader.read(shard, place, self._with_instances, None if needs_all else choose_rows)
        image = one_channel(sample.image)
        if self._how == "percentile":
            known, num_values = sample.value_range, np.iinfo(image.dtype).max + 1
            table = percentile_table(image) if known is None else table_of(known, num_values)
            return replace(sample, image=image), table
        return replace(sample, image=normalize_intensity(image, self._how)), None


@dataclass(frozen=True)
class _Place:
    """Position of a sample in memory: the first byte of its image, which its mask follows, and of its instances."""

    start: int
    shape: tuple[int, ...]
    key: str
    metadata: dict
    instances_start: int | None


class CachedSamples:
    """Samples in memory that worker processes share.

    memory: images and masks, uint8, and instances, uint16. places: by [shard][place].
    """

    def __init__(self, memory: SharedMemory, places: list[list[_Place]]) -> None:
        self._memory, self._places = memory, places

    def read(self, shard: int, place: int) -> Sample:
        """A sample, its image uint8; not to be written to."""
        found = self._places[shard][place]
        num_bytes, mask_shape = math.prod(found.shape), found.shape[:2]
        image = self._memory.array(found.start, num_bytes).reshape(found.shape)
        mask = self._memory.array(found.start + num_bytes, math.prod(mask_shape)).reshape(mask_shape)
        instances = None
        if found.instances_start is not None:
            flat = self._memory.array(found.instances_start, 2 * math.prod(mask_shape))
            instances = flat.view(np.uint16).reshape(mask_shape)
        return Sample(found.key, image, mask, found.metadata, instances)

    def read_with_table(self, shard: int, place: int, _: RowChoice | None = None) -> tuple[Sample, None]:
        """As in `NormalizedSamples`."""
        return self.read(shard, place), None


def cache_samples(reader: Shards, config: DataConfig, with_instances: bool = False) -> CachedSamples:
    """All samples of a reader, with or without their instances. Raises InputError for one that cannot be read, and
    where they take too much memory."""
    whole = NormalizedSamples(reader, config, with_instances)
    # Each process of this machine keeps its own.
    free = min([psutil.virtual_memory().available, *free_in_cgroups()])
    most = MOST_OF_MEMORY * free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    places: list[list[_Place]] = []
    num_bytes, file = 0, anonymous_file()
    try:
        for shard, size in enumerate(reader.shard_sizes):
            places.append([])
            for place in range(size):
                sample = whole.read(shard, place)
                start, shape = num_bytes, sample.image.shape
                arrays, instances_start = [sample.image, sample.mask], None
                if sample.instances is not None:
                    # Numbers of two bytes begin at an even byte.
                    instances_start = start + sample.image.nbytes + sample.mask.nbytes
                    if instances_start % 2:
                        arrays.append(np.zeros(1, np.uint8))
                        instances_start += 1
                    arrays.append(sample.instances.astype(np.uint16, copy=False))
                places[-1].append(_Place(start, shape, sample.key, sample.metadata, instances_start))
                num_bytes += sum(_append(file, array) for array in arrays)
                if num_bytes > most:
                    raise InputError(
                        f"--data.cache-in-memory: {sum(map(len, places))} of {len(reader)} samples take {num_bytes} "
                        "bytes already, half of this process's share of the free memory; omit the flag"
                    )
    except BaseException:
        os.close(file)
        raise
    return CachedSamples(SharedMemory(num_bytes, file), places)


def _append(file: int, array: np.ndarray) -> int:
    """Write an array to the end of a file; returns its number of bytes."""
    rest = memoryview(np.ascontiguousarray(array)).cast("B")
    while rest:
        rest = rest[os.write(file, rest) :]
    return array.nbytes
