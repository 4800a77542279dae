"""Batches for training and single images for evaluation, read and prepared in worker processes.

What crosses from a worker to its training process is uint8, one channel where the images are grey; normalising
happens on the device. An error that a user is meant to read crosses as a value, for PyTorch would wrap it in a
traceback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from glioma_dist.config import DataConfig
from glioma_dist.data.augment import augment, fit_evaluation, fit_training, raise_contrast
from glioma_dist.data.order import Order, Place
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards import ShardReader
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class Batch:
    """What one training process gets of a batch, B samples."""

    images: Tensor
    """(B, 1 or 3, H, W) uint8; one channel where all are grey."""
    masks: Tensor
    """(B, H, W) uint8 of 0 and 1."""
    seeds: Tensor
    """(B,) int64, each sample's own at this place in the order."""
    keys: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        move = {"device": device, "non_blocking": True}
        return Batch(self.images.to(**move), self.masks.to(**move), self.seeds, self.keys)

    def rows(self, band: slice) -> Batch:
        """Only a band of the images' rows."""
        return Batch(self.images[:, :, band], self.masks[:, band], self.seeds, self.keys)

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.masks.pin_memory(), self.seeds, self.keys)


def training_batches(
    reader: ShardReader, order: Order, config: DataConfig, first_step: int, rank: int, num_processes: int
) -> Iterator[Batch]:
    """Batches number `first_step`, `first_step` + 1, … without end: this process's slots of each.

    Raises InputError where the processes do not divide the batch, and for samples that cannot be used.
    """
    if order.batch_size % num_processes:
        raise InputError(
            f"--batch-size {order.batch_size} cannot be shared by {num_processes} processes: give a "
            f"multiple of {num_processes}"
        )
    share = order.batch_size // num_processes
    slots = range(rank * share, (rank + 1) * share)
    return _load(_TrainingSamples(reader, order, config, slots), _StepsFrom(first_step), config.workers)


def evaluation_samples(reader: ShardReader, rank: int, num_processes: int, workers: int) -> Iterator[Sample]:
    """Every sample as taken, once over all processes: this process's share."""
    places = [(shard, place) for shard, size in enumerate(reader.shard_sizes) for place in range(size)]
    return _load(_PlainSamples(reader), places[rank::num_processes], workers)


def prepare_training_sample(sample: Sample, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One sample as the network is shown it: image (H, W) or (H, W, 3) and mask (H, W), both uint8 of `config.size`.
    Contrast is raised on the whole image, so that a crop looks as it does at test time."""
    image = raise_contrast(sample.image, config.raise_contrast)
    image, mask = fit_training(image, sample.mask, config, np.random.default_rng(seed), sample.key)
    return augment(image, mask, config.augment, seed, config.chain_length, config.chain_strength)


def prepare_evaluation_sample(sample: Sample, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """One sample as validation shows it to the network (see `fit_evaluation`)."""
    return fit_evaluation(raise_contrast(sample.image, config.raise_contrast), sample.mask, config)


def image_tensor(image: np.ndarray) -> Tensor:
    """(H, W) or (H, W, 3) uint8 to (1 or 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)))


class _TrainingSamples(Dataset):
    def __init__(self, reader: ShardReader, order: Order, config: DataConfig, slots: range) -> None:
        self.reader, self.order, self.config, self.slots = reader, order, config, slots

    def __getitem__(self, step: int) -> Batch | InputError:
        try:
            return self._batch(self.order.batch(step, self.slots))
        except InputError as error:
            return error

    def _batch(self, places: list[Place]) -> Batch:
        images, masks, keys = [], [], []
        for place in places:
            sample = self.reader.read(place.shard, place.sample)
            image, mask = prepare_training_sample(sample, self.config, place.seed)
            images.append(image_tensor(image))
            masks.append(torch.from_numpy(mask))
            keys.append(sample.key)
        channels = max(len(image) for image in images)
        seeds = torch.tensor([place.seed for place in places])
        return Batch(
            torch.stack([image.expand(channels, -1, -1) for image in images]), torch.stack(masks), seeds, tuple(keys)
        )


class _PlainSamples(Dataset):
    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader

    def __getitem__(self, place: tuple[int, int]) -> Sample | InputError:
        try:
            return self.reader.read(*place)
        except InputError as error:
            return error


class _StepsFrom(Sampler):
    def __init__(self, first_step: int) -> None:
        self.first_step = first_step

    def __iter__(self) -> Iterator[int]:
        step = self.first_step
        while True:
            yield step
            step += 1


def _load(dataset: Dataset, sampler: Sampler | list, workers: int) -> Iterator:
    """What `dataset` holds at the sampler's places, in their order, made by worker processes."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=_start_worker,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
    )
    for item in loader:
        if isinstance(item, InputError):
            raise item
        yield item


def _as_it_is(item: object) -> object:
    return item


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
    # A scheduler or a terminal may signal the whole process group. The training process saves, and ends its workers
    # itself; they end of their own accord when it is gone.
    os.setpgid(0, 0)
