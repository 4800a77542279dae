"""What the workers of a run are asked for: batches to train on, images to validate on, samples as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from glioma_dist.config import DataConfig
from glioma_dist.config.scale import strip_edges
from glioma_dist.data.batch import channels_first
from glioma_dist.data.mixture import MixtureSampler, Shards
from glioma_dist.data.sample import Sample
from glioma_dist.data.sample_cache import CachedSamples, NormalizedSamples
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shared_memory_ring import BatchHandle, SharedMemoryRing, write_batch
from glioma_dist.data.transforms import (
    IntensityNormalization,
    augment,
    normalize_intensity,
    transform_evaluation,
    transform_training,
)
from glioma_dist.data.worker_pool import Note
from glioma_dist.errors import InputError


def prepare_training_sample(
    sample: Sample, config: DataConfig, seed: int, table: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One sample as the network is shown it: image (H, W) or (H, W, 3) and mask (H, W), both uint8 of `config.size`.
    `sample` and `table` are as `NormalizedSamples` gives them."""
    image, mask = transform_training(sample.image, sample.mask, config, np.random.default_rng(seed), sample.key, table)
    return augment(image, mask, config.augment, seed, config.num_ops, config.magnitude)


def prepare_evaluation_sample(sample: Sample, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """One sample as validation shows it to the network (see `transform_evaluation`)."""
    return transform_evaluation(normalize_intensity(sample.image, config.intensity_normalization), sample.mask, config)


class _Job:
    """What workers do, and whose samples they read. ring: where they write."""

    def __init__(self, reader: Shards, ring: SharedMemoryRing | None = None) -> None:
        self.reader, self.ring = reader, ring

    def describe(self, shard: int, place: int) -> str:
        return self.reader.describe(shard, place)


class TrainingJob(_Job):
    """Makes batch number `task` of a run: the samples of `slots`, and of each the rows `rows`."""

    def __init__(
        self,
        samples: NormalizedSamples | CachedSamples,
        reader: Shards,
        order: DeterministicSampler | MixtureSampler,
        config: DataConfig,
        slots: range,
        rows: slice,
        ring: SharedMemoryRing | None,
    ) -> None:
        super().__init__(reader, ring)
        self.samples, self.order, self.config, self.slots, self.rows = samples, order, config, slots, rows

    def make(self, task: int, place: int | None, note: Note) -> BatchHandle:
        images, masks, keys, seeds = [], [], [], []
        for each in self.order.batch(task, self.slots):
            note(each.shard, each.sample)
            sample, table = self.samples.read_with_table(each.shard, each.sample)
            image, mask = prepare_training_sample(sample, self.config, each.seed, table)
            images.append(channels_first(image[self.rows]))
            masks.append(mask[self.rows])
            keys.append(sample.key)
            seeds.append(each.seed)
        channels = max(map(len, images))
        images = [np.broadcast_to(image, (channels, *image.shape[1:])) for image in images]
        shape, flat = write_batch(images, masks, place, self.ring)
        return BatchHandle(shape, tuple(seeds), tuple(keys), self.config.size.height, flat)


class ValidationJob(_Job):
    """Makes the image at (shard, place) `task`, and of it one strip."""

    def __init__(
        self, reader: Shards, config: DataConfig, strip: tuple[int, int], ring: SharedMemoryRing | None
    ) -> None:
        super().__init__(reader, ring)
        self.config, self.strip = config, strip

    def make(self, task: tuple[int, int], place: int | None, note: Note) -> BatchHandle:
        note(*task)
        sample = self.reader.read(*task)
        image, mask = prepare_evaluation_sample(sample, self.config)
        number, size = self.strip
        try:
            start, stop = strip_edges(len(mask), size)[number : number + 2]
        except InputError as error:
            raise InputError(f"validation sample {sample.key}: {error}") from error
        shape, flat = write_batch([channels_first(image[start:stop])], [mask[start:stop]], place, self.ring)
        return BatchHandle(shape, (0,), (sample.key,), len(mask), flat)


class PlainJob(_Job):
    """Reads the sample at (shard, place) `task`."""

    def __init__(self, reader: Shards, how: IntensityNormalization | None) -> None:
        super().__init__(reader)
        self.how = how

    def make(self, task: tuple[int, int], _place: int | None, note: Note) -> Sample:
        note(*task)
        sample = self.reader.read(*task)
        return sample if self.how is None else replace(sample, image=normalize_intensity(sample.image, self.how))
