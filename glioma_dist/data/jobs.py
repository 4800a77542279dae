"""Jobs of the worker processes: make training batches, make validation images, read samples unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np

from glioma_dist.config import DataConfig
from glioma_dist.config.scale import strip_edges
from glioma_dist.data.augmentations import draw_flips
from glioma_dist.data.batch import channels_first, sample_digest
from glioma_dist.data.mixture import MixtureSampler, Shards
from glioma_dist.data.sample import Sample
from glioma_dist.data.sample_cache import CachedSamples, NormalizedSamples
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shared_memory_ring import BatchHandle, BatchRoom, SharedMemoryRing, write_batch
from glioma_dist.data.targets import labels_of, planes_of
from glioma_dist.data.transforms import (
    IntensityNormalization,
    Places,
    augment,
    draw_window,
    normalize_intensity,
    transform_evaluation,
    transform_training,
)
from glioma_dist.data.worker_pool import Note
from glioma_dist.errors import InputError

ONLY_MASK = ("mask",)
"""`ModelConfig.targets` of a network that predicts the mask alone."""


def prepare_training_sample(
    sample: Sample,
    config: DataConfig,
    seed: int,
    table: np.ndarray | None = None,
    out: Places = (None, None),
    targets: Sequence[str] = ONLY_MASK,
) -> tuple[np.ndarray, np.ndarray]:
    """Transform and augment one sample: image (H, W) or (H, W, 3) and mask (H, W), both uint8 of `config.size`; with a
    second target (2, H, W), see `planes_of`.

    sample, table: from `NormalizedSamples`. out: see `transform_training`. targets: `ModelConfig.targets`.
    """
    generator = np.random.default_rng(seed)
    start = (sample.image, labels_of(sample, targets), config, generator, sample.key, table)
    if config.augment in ((), ("flips",)):  # in one go
        image, labels = transform_training(*start, draw_flips(seed) if config.augment else None, out)
    else:
        transformed = transform_training(*start)
        image, labels = augment(*transformed, config.augment, seed, config.num_ops, config.magnitude)
    return image, planes_of(labels, targets)


def rows_needed(config: DataConfig, seed: int, height: int, width: int) -> slice:
    """The rows of an image that `prepare_training_sample` looks at."""
    with suppress(InputError):  # which is raised again, with the sample's key
        if config.transform != "resize":
            return draw_window(height, width, config, np.random.default_rng(seed), "")[0]
    return slice(0, height)


def _put(array: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Copy an image or a mask to its place `out` in the batch, unless it is there already. Colour images are returned
    unchanged."""
    if array.ndim != out.ndim:
        return array
    if array.ctypes.data != out.ctypes.data:
        out[:] = array
    return out


def prepare_evaluation_sample(
    sample: Sample, config: DataConfig, targets: Sequence[str] = ONLY_MASK
) -> tuple[np.ndarray, np.ndarray]:
    """Transform one sample for validation (see `transform_evaluation`), for `targets` as in training."""
    image = normalize_intensity(sample.image, config.intensity_normalization)
    image, labels = transform_evaluation(image, labels_of(sample, targets), config)
    return image, planes_of(labels, targets)


class _Job:
    """Work for the worker processes. reader: the samples they read; ring: the shared memory they write to."""

    def __init__(self, reader: Shards, ring: SharedMemoryRing | None = None) -> None:
        self.reader, self.ring = reader, ring

    def describe(self, shard: int, place: int) -> str:
        return self.reader.describe(shard, place)


class TrainingJob(_Job):
    """Makes batch number `task` of a run: the rows `rows` of the samples in the slots `slots`."""

    def __init__(
        self,
        samples: NormalizedSamples | CachedSamples,
        reader: Shards,
        sampler: DeterministicSampler | MixtureSampler,
        config: DataConfig,
        slots: range,
        rows: slice,
        ring: SharedMemoryRing | None,
        targets: Sequence[str],
        with_digests: bool = False,
    ) -> None:
        """with_digests: as of `training_batches`."""
        super().__init__(reader, ring)
        self.samples, self.sampler, self.config, self.slots, self.rows = samples, sampler, config, slots, rows
        self.targets, self.with_digests = targets, with_digests

    def make(self, task: int, place: int | None, note: Note) -> BatchHandle:
        images, masks, keys, seeds, digests = [], [], [], [], []
        height, width = self.rows.stop - self.rows.start, self.config.size.width
        # Grey images are written straight to their place in the batch.
        num_planes = len(self.targets)
        room = BatchRoom((len(self.slots), 1, height, width), place, self.ring, num_planes)
        is_whole = height == self.config.size.height
        for number, each in enumerate(self.sampler.batch(task, self.slots)):
            note(each.shard, each.sample)
            needed = partial(rows_needed, self.config, each.seed)
            sample, table = self.samples.read_with_table(each.shard, each.sample, needed)
            out = (room.images[number, 0], room.masks[number])
            image, mask = prepare_training_sample(
                sample, self.config, each.seed, table, out if is_whole else (None, None), self.targets
            )
            if self.with_digests:
                digests.append(sample_digest(image, mask, sample.key, each.seed))
            images.append(_put(image[self.rows], out[0]))
            masks.append(_put(mask[..., self.rows, :], out[1]))
            keys.append(sample.key)
            seeds.append(each.seed)
        shape, flat = room.shape, room.flat
        if any(image.ndim == 3 for image in images):
            shape, flat = self._write_colours(images, masks, place)
        known = (tuple(seeds), tuple(keys), self.config.size.height, flat, num_planes, tuple(digests))
        return BatchHandle(shape, *known)

    def _write_colours(
        self, images: list[np.ndarray], masks: list[np.ndarray], place: int | None
    ) -> tuple[tuple[int, ...], np.ndarray | None]:
        """Write the batch with three channels. Grey images are copied first: they lie where others will be written."""
        images = [channels_first(image.copy()) for image in images]
        images = [np.broadcast_to(image, (3, *image.shape[1:])) for image in images]
        return write_batch(images, [mask.copy() for mask in masks], place, self.ring)


class ValidationJob(_Job):
    """Makes one strip of the validation image at (shard, place) `task`."""

    def __init__(
        self,
        reader: Shards,
        config: DataConfig,
        strip: tuple[int, int],
        ring: SharedMemoryRing | None,
        targets: Sequence[str],
    ) -> None:
        super().__init__(reader, ring)
        self.config, self.strip, self.targets = config, strip, targets

    def make(self, task: tuple[int, int], place: int | None, note: Note) -> BatchHandle:
        note(*task)
        sample = self.reader.read(*task, len(self.targets) > 1)
        image, mask = prepare_evaluation_sample(sample, self.config, self.targets)
        number, size = self.strip
        try:
            start, stop = strip_edges(len(image), size)[number : number + 2]
        except InputError as error:
            raise InputError(f"validation sample {sample.key}: {error}") from error
        masks = [mask[..., start:stop, :]]
        shape, flat = write_batch([channels_first(image[start:stop])], masks, place, self.ring)
        return BatchHandle(shape, (0,), (sample.key,), len(image), flat, len(self.targets))


class PlainJob(_Job):
    """Reads the sample at (shard, place) `task`."""

    def __init__(self, reader: Shards, how: IntensityNormalization | None, with_instances: bool) -> None:
        super().__init__(reader)
        self.how, self.with_instances = how, with_instances

    def make(self, task: tuple[int, int], _place: int | None, note: Note) -> Sample:
        note(*task)
        sample = self.reader.read(*task, self.with_instances)
        return sample if self.how is None else replace(sample, image=normalize_intensity(sample.image, self.how))
