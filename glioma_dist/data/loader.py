"""Batches for training, and single images for validation and evaluation, read and prepared by worker processes.

Workers send uint8 to the training process, with one channel if the images are grey, and only the rows that the process
computes; the device normalises them. Errors that are meant for users are sent as values.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count

import torch

from glioma_dist.config import DataConfig
from glioma_dist.data.batch import Batch, image_tensor
from glioma_dist.data.device_copies import MOST_IN_HAND, HostBatches, batches_on
from glioma_dist.data.jobs import (
    ONLY_MASK,
    PlainJob,
    TrainingJob,
    ValidationJob,
    prepare_evaluation_sample,
    prepare_training_sample,
)
from glioma_dist.data.mixture import MixtureSampler, Shards
from glioma_dist.data.sample import Sample
from glioma_dist.data.sample_cache import NormalizedSamples, cache_samples
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shared_memory_ring import SharedMemoryRing
from glioma_dist.data.streams import Stream, StreamHere
from glioma_dist.data.targets import check_instances
from glioma_dist.data.transforms import IntensityNormalization
from glioma_dist.data.worker_pool import Job, WorkerPool
from glioma_dist.errors import InputError, RunError
from glioma_dist.registry import augmentations

__all__ = [
    "Batch",
    "ValidationImages",
    "evaluation_samples",
    "image_tensor",
    "places_of",
    "prepare_evaluation_sample",
    "prepare_training_sample",
    "start_workers",
    "training_batches",
]

TASKS_AHEAD = 2
"""Tasks that each worker gets ahead of the results that are asked for."""
LEAST_PLACE_BYTES = 2**25
"""Size of a place in the ring of validation images; larger images are sent in memory of their own. Bytes that are never
written take no memory."""
CPU = torch.device("cpu")


def start_workers(config: DataConfig) -> WorkerPool:
    """Fork the workers of a run. If possible, call it before the device and the connections to other processes are set
    up. Raises InputError."""
    for name in config.augment:  # imported once, and not by each worker
        with suppress(RunError):  # raised where the run looks at its settings
            augmentations.load(name)
    return WorkerPool(config.workers)


def training_batches(
    reader: Shards,
    sampler: DeterministicSampler | MixtureSampler,
    config: DataConfig,
    first_step: int = 0,
    rank: int = 0,
    num_processes: int = 1,
    seconds_to_answer: float = 0,
    *,
    rows: slice | None = None,
    device: torch.device = CPU,
    pool: WorkerPool | None = None,
    targets: Sequence[str] = ONLY_MASK,
    with_digests: bool = False,
    may_differ: bool = False,
) -> Generator[Batch]:
    """Yield this process's slots of batches number `first_step`, `first_step` + 1, … without end.

    Args:
        reader: the samples, a `ShardReader` or several joined.
        sampler: which sample stands in which slot of which batch; its batch size counts all processes' images.
        config: size, augmentation and number of worker processes. Its folders are not looked at.
        first_step: counted from 0 over all epochs.
        rank: which of `num_processes` this process is; each gets an equal share of a batch.
        seconds_to_answer: after which a worker that does not answer counts as lost; 0: never.
        rows: of each image; by default all.
        device: of the batches. On a CUDA device the next batch is copied while the current one is computed.
        pool: running workers (`start_workers`); by default `config.workers` are started, and end with the generator.
        may_differ: whether shares may differ by one image where `num_processes` does not divide the batch.
        targets: `ModelConfig.targets`; a second one is made of the samples' instances (targets.py).
        with_digests: give each batch the SHA-256 of its samples, computed by who prepares them.

    Yields `Batch`es; close the generator to end the workers. Raises InputError for samples that cannot be used, or if
    `num_processes` does not divide the batch; UnavailableError if a worker is lost. Without instances for a second
    target, the call itself raises InputError.
    """
    check_instances(reader, targets)
    if sampler.batch_size % num_processes and not may_differ:
        raise InputError(
            f"--batch-size {sampler.batch_size} cannot be shared by {num_processes} processes: give a "
            f"multiple of {num_processes}"
        )
    slots = own_slots(sampler.batch_size, rank, num_processes)
    read = cache_samples if config.cache_in_memory else NormalizedSamples
    samples = read(reader, config, len(targets) > 1)
    rows = rows or slice(0, config.size.height)
    num_workers = config.workers if pool is None else pool.num_workers
    num_planes = 3 + len(targets)
    ring = _make_ring(num_workers, num_planes * len(slots) * (rows.stop - rows.start) * config.size.width)
    job = TrainingJob(samples, reader, sampler, config, slots, rows, ring, targets, with_digests)
    return _Work(job, num_workers, seconds_to_answer, pool).batches(count(first_step), device, is_last=True)


def own_slots(batch_size: int, rank: int, num_processes: int) -> range:
    """The slots of a batch that a process computes; shares differ by one image at most."""
    return range(batch_size * rank // num_processes, batch_size * (rank + 1) // num_processes)


class ValidationImages:
    """This process's validation images as the network gets them, each as a batch of one; for any number of rounds.

    Args:
        reader: the samples.
        config: how images are prepared (see `transform_evaluation`), and the number of workers.
        places: (shard, place) of each image, in their order.
        strip: which of how many strips of each image this process works on.
        seconds_to_answer, device, pool, targets: as of `training_batches`. Raises InputError as it does.
    """

    def __init__(
        self,
        reader: Shards,
        config: DataConfig,
        places: list[tuple[int, int]],
        strip: tuple[int, int] = (0, 1),
        seconds_to_answer: float = 0,
        device: torch.device = CPU,
        pool: WorkerPool | None = None,
        targets: Sequence[str] = ONLY_MASK,
    ) -> None:
        check_instances(reader, targets)
        num_workers = config.workers if pool is None else pool.num_workers
        place_bytes = max(LEAST_PLACE_BYTES, (3 + len(targets)) * config.size.height * config.size.width)
        job = ValidationJob(reader, config, strip, _make_ring(num_workers, place_bytes), targets)
        self._places, self._device = places, device
        self._work = _Work(job, num_workers, seconds_to_answer, pool)

    def __iter__(self) -> Generator[Batch]:
        """Close it to stop early. Raises InputError for an image that cannot be used, UnavailableError if a worker is
        lost."""
        return self._work.batches(iter(self._places), self._device)

    def close(self) -> None:
        """Have a pool that lives on forget the images; they are handed to it again where they are asked for again."""
        self._work.end()


def evaluation_samples(
    reader: Shards,
    rank: int,
    num_processes: int,
    workers: int,
    seconds_to_answer: float = 0,
    intensity_normalization: IntensityNormalization | None = None,
    pool: WorkerPool | None = None,
    with_instances: bool = False,
) -> Generator[Sample]:
    """Yield this process's share of all samples, each sample once over all processes: uint8, unchanged or with their
    contrast stretched. with_instances: see `ShardReader.read`. Raises the errors of `training_batches`."""
    work = _Work(PlainJob(reader, intensity_normalization, with_instances), workers, seconds_to_answer, pool)
    try:
        with work.stream(iter(places_of(reader)[rank::num_processes])) as stream:
            for sample, place in stream:
                stream.release(place)
                yield sample
    finally:
        work.end()


def places_of(reader: Shards) -> list[tuple[int, int]]:
    """(shard, place) of every sample, in the shards' order."""
    return [(shard, place) for shard, size in enumerate(reader.shard_sizes) for place in range(size)]


class _Work:
    """A job, the ring that it writes to, and the workers that do it: `pool`, or workers started for each stream, or
    without workers this process."""

    def __init__(self, job: Job, num_workers: int, seconds_to_answer: float, pool: WorkerPool | None) -> None:
        self._job, self._seconds_to_answer, self._pool = job, seconds_to_answer, pool
        self._num_workers = num_workers if pool is None else pool.num_workers
        self._number: int | None = None
        self._places = list(range(num_places(self._num_workers)))

    @contextmanager
    def stream(self, tasks: Iterator) -> Iterator[Stream | StreamHere]:
        """Yield the results of `tasks` in their order."""
        if not self._num_workers:
            yield StreamHere(self._job, tasks)
            return
        with ExitStack() as stack:
            pool, number, places = self._pool, self._number, self._places
            if pool is None:
                pool, number, places = stack.enter_context(WorkerPool(self._num_workers, self._job)), 0, [*places]
            elif number is None:
                number = self._number = pool.add_job(self._job)
            stream = Stream(pool, number, tasks, places, self._num_workers * TASKS_AHEAD, self._seconds_to_answer)
            stack.callback(stream.close)
            yield stream

    def batches(self, tasks: Iterator, device: torch.device, is_last: bool = False) -> Generator[Batch]:
        """Yield the results as batches on a device, for a job that has a ring. is_last: call `end` afterwards."""
        try:
            with self.stream(tasks) as stream:
                yield from batches_on(device, HostBatches(stream, self._job.ring))
        finally:
            if is_last:
                self.end()

    def end(self) -> None:
        """Remove the job from a pool that continues to run."""
        if self._number is not None:
            self._pool.drop_job(self._number)
            self._number = None


def num_places(num_workers: int) -> int:
    """Places that a ring needs for the tasks of so many workers and for the batches in use."""
    return num_workers * TASKS_AHEAD + MOST_IN_HAND


def _make_ring(num_workers: int, place_bytes: int) -> SharedMemoryRing | None:
    return SharedMemoryRing(num_places(num_workers), place_bytes) if num_workers else None
