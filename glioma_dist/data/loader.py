"""Batches for training and single images for evaluation, read and prepared in worker processes.

What crosses from a worker to its training process is uint8, one channel where the images are grey; normalising
happens on the device. An error that a user is meant to read crosses as a value, for PyTorch would wrap it in a
traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import count

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from glioma_dist.config import DataConfig
from glioma_dist.data.lost_workers import give_back_notices, noticing_lost_workers, take_over_notices
from glioma_dist.data.mixture import MixtureSampler, Shards
from glioma_dist.data.sample import Sample
from glioma_dist.data.sample_cache import CachedSamples, NormalizedSamples, cache_samples
from glioma_dist.data.sampler import DeterministicSampler, SampleRef
from glioma_dist.data.shared_memory_ring import BatchHandle, SharedMemoryRing
from glioma_dist.data.transforms import augment, normalize_intensity, transform_evaluation, transform_training
from glioma_dist.distributed.signals import STOP_SIGNALS, get_signal_at_parents_death
from glioma_dist.errors import InputError, RunError, UnavailableError

BATCHES_AHEAD = 2
"""That each worker makes before they are asked for."""
SIGNS_OF_A_LOST_WORKER = ("DataLoader worker (pid", "DataLoader timed out")
"""In PyTorch's errors when a worker process was killed, or does not answer."""


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

    def strip(self, rows: slice) -> Batch:
        """Only some rows of the images."""
        return Batch(self.images[:, :, rows], self.masks[:, rows], self.seeds, self.keys)

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.masks.pin_memory(), self.seeds, self.keys)


def training_batches(
    reader: Shards,
    order: DeterministicSampler | MixtureSampler,
    config: DataConfig,
    first_step: int = 0,
    rank: int = 0,
    num_processes: int = 1,
    seconds_to_answer: float = 0,
) -> Generator[Batch]:
    """Make batches number `first_step`, `first_step` + 1, … without end: this process's slots of each.

    Args:
        reader: the samples, a `ShardReader` or several joined.
        order: which sample stands in which slot of which batch; its batch size counts all processes' images.
        config: size, augmentation and number of worker processes. Its folders are not looked at.
        first_step: counted from 0 over all epochs.
        rank: which of `num_processes` this process is; each gets an equal share of a batch.
        seconds_to_answer: after which a worker that gives nothing counts as lost; 0: never.

    Yields `Batch`es; close the generator to end the workers. Raises InputError for samples that cannot be used or a
    batch that the processes do not divide, UnavailableError where a worker is lost.
    """
    if order.batch_size % num_processes:
        raise InputError(
            f"--batch-size {order.batch_size} cannot be shared by {num_processes} processes: give a "
            f"multiple of {num_processes}"
        )
    share = order.batch_size // num_processes
    slots = range(rank * share, (rank + 1) * share)
    samples = cache_samples(reader, config) if config.cache_in_memory else NormalizedSamples(reader, config)
    # So many batches PyTorch's loader has under way at most, beside the one that it has just given out.
    ring = SharedMemoryRing(config.workers * BATCHES_AHEAD + 1, share, config.size) if config.workers else None
    dataset = _TrainingSamples(samples, order, config, slots, ring)
    items = _load(dataset, _StepsFrom(first_step), config.workers, reader, seconds_to_answer)
    return _take_out(items, ring)


def _take_out(items: Generator[Batch | BatchHandle], ring: SharedMemoryRing | None) -> Generator[Batch]:
    """Batches, each out of the ring before the loader can have its place written again."""
    with closing(items):
        for item in items:
            if isinstance(item, BatchHandle):
                item = Batch(*ring.take(item.place, item.channels), torch.tensor(item.seeds), item.keys)
            yield item.pin_memory() if torch.cuda.is_available() else item


def evaluation_samples(
    reader: Shards, rank: int, num_processes: int, workers: int, seconds_to_answer: float = 0
) -> Iterator[Sample]:
    """Every sample as taken, once over all processes: this process's share. Raises as `training_batches` does."""
    places = [(shard, place) for shard, size in enumerate(reader.shard_sizes) for place in range(size)]
    return _load(_PlainSamples(reader), places[rank::num_processes], workers, reader, seconds_to_answer)


def prepare_training_sample(sample: Sample, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One sample as the network is shown it: image (H, W) or (H, W, 3) and mask (H, W), both uint8 of `config.size`.
    `sample` is as `NormalizedSamples` gives it."""
    image, mask = transform_training(sample.image, sample.mask, config, np.random.default_rng(seed), sample.key)
    return augment(image, mask, config.augment, seed, config.num_ops, config.magnitude)


def prepare_evaluation_sample(sample: Sample, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """One sample as validation shows it to the network (see `transform_evaluation`)."""
    return transform_evaluation(normalize_intensity(sample.image, config.intensity_normalization), sample.mask, config)


def image_tensor(image: np.ndarray) -> Tensor:
    """(H, W) or (H, W, 3) uint8 to (1 or 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)))


class _Samples(Dataset):
    """Makes what a place of the sampler asks for. `making` is memory that it shares with the training process: for each
    worker its process, and the shard and the place of the sample that it is at."""

    making: Tensor | None = None

    def __getitem__(self, asked: object) -> object:
        try:
            return self.make(asked)
        except RunError as error:
            return error

    def note(self, shard: int, place: int) -> None:
        worker = get_worker_info()
        if worker is not None and self.making is not None:
            self.making[worker.id] = torch.tensor([os.getpid(), shard, place])


class _TrainingSamples(_Samples):
    def __init__(
        self,
        samples: NormalizedSamples | CachedSamples,
        order: DeterministicSampler | MixtureSampler,
        config: DataConfig,
        slots: range,
        ring: SharedMemoryRing | None,
    ) -> None:
        self.samples, self.order, self.config, self.slots, self.ring = samples, order, config, slots, ring

    def make(self, asked: tuple[int, int]) -> Batch | BatchHandle:
        """Batch number asked[1]; asked[0] says the how manyth it is that this loader makes."""
        number, step = asked
        return self._batch(number, self.order.batch(step, self.slots))

    def _batch(self, number: int, places: list[SampleRef]) -> Batch | BatchHandle:
        images, masks, keys = [], [], []
        for place in places:
            self.note(place.shard, place.sample)
            sample = self.samples.read(place.shard, place.sample)
            image, mask = prepare_training_sample(sample, self.config, place.seed)
            images.append(image_tensor(image))
            masks.append(torch.from_numpy(mask))
            keys.append(sample.key)
        channels = max(len(image) for image in images)
        seeds = tuple(place.seed for place in places)
        images = [image.expand(channels, -1, -1) for image in images]
        if self.ring is None:
            return Batch(torch.stack(images), torch.stack(masks), torch.tensor(seeds), tuple(keys))
        place = number % self.ring.num_places
        self.ring.put(place, images, masks)
        return BatchHandle(place, channels, seeds, tuple(keys))


class _PlainSamples(_Samples):
    def __init__(self, reader: Shards) -> None:
        self.reader = reader

    def make(self, place: tuple[int, int]) -> Sample:
        self.note(*place)
        return self.reader.read(*place)


class _StepsFrom(Sampler):
    def __init__(self, first_step: int) -> None:
        self.first_step = first_step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(count(), count(self.first_step), strict=False)


def _load(
    dataset: _Samples, sampler: Sampler | list, workers: int, reader: Shards, seconds_to_answer: float
) -> Generator:
    """What `dataset` holds at the sampler's places, in their order, made by worker processes."""
    _check_room_for(workers)
    dataset.making = torch.zeros(workers, 3, dtype=torch.int64).share_memory_() if workers else None
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=_start_worker,
        collate_fn=_as_it_is,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        # Forked, so that they share the ring, and images that are kept.
        multiprocessing_context="fork" if workers else None,
        timeout=seconds_to_answer if workers else 0,
    )
    others = set(multiprocessing.active_children())
    items = iter(loader)
    notice, before = take_over_notices() if workers else (None, None)
    try:
        while True:
            try:
                with noticing_lost_workers(notice):
                    item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                raise _explain_loss(dataset, reader, error, seconds_to_answer) from error
            if isinstance(item, RunError):
                raise item
            yield item
    finally:
        if workers:
            _end_workers(items, set(multiprocessing.active_children()) - others)
            give_back_notices(before)


def _check_room_for(workers: int) -> None:
    """Raises InputError where /dev/shm, of which containers have little, is full. PyTorch's loader would leave a
    traceback of its own behind."""
    context = multiprocessing.get_context("fork")
    try:
        _ = [context.Queue() for _ in range(2 * workers)]  # about what a loader makes
    except OSError as error:
        raise InputError(
            f"no room for {workers} workers in /dev/shm ({error.strerror}): make it larger (docker run --shm-size=1g), "
            "or give --data.workers 0"
        ) from error


def _end_workers(items: Iterator, workers: set[multiprocessing.Process]) -> None:
    """Have worker processes end, and kill those that do not: one that was stopped would hold this process for ever."""
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGCONT)
    with suppress(RuntimeError):  # of a worker that was killed, while its end is waited for
        items._shutdown_workers()  # waits some seconds; PyTorch then takes their end for no accident any more
    for worker in workers:
        worker.kill()
        worker.join()


def _explain_loss(dataset: _Samples, reader: Shards, error: RuntimeError, seconds_to_answer: float) -> Exception:
    """What to raise for an error of PyTorch's loader: of a worker that is gone, the sample that it was at."""
    said = " ".join(str(error).split())
    if not any(sign in said for sign in SIGNS_OF_A_LOST_WORKER):
        return error
    again = "run the same command again"
    alive = {process.pid for process in multiprocessing.active_children()}
    for process, shard, place in [] if dataset.making is None else dataset.making.tolist():
        if process and process not in alive:
            where = reader.describe(shard, place)
            return UnavailableError(
                f"{where}: the worker process that was at it died ({said[:120]}); is memory full? Use fewer "
                f"workers, or look at the sample; {again}"
            )
    if "timed out" in said:
        return UnavailableError(f"a worker process that reads data did not answer for {seconds_to_answer:g} s; {again}")
    return UnavailableError(f"a worker process that reads data died ({said[:120]}); is memory full? {again}")


def _as_it_is(item: object) -> object:
    return item


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
    # A scheduler or a terminal may signal the whole process group. The training process saves, and ends its workers
    # itself; when it is killed, the system kills them.
    os.setpgid(0, 0)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    get_signal_at_parents_death(signal.SIGKILL)
