"""Batches on a CUDA device: the bits of the CPU's, however slowly the device reads. Needs a CUDA device."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import draw_shards, tiny_config

from glioma_dist.data.device_copies import CudaCopier, HostBatches, copy_ahead
from glioma_dist.data.loader import TASKS_AHEAD, ValidationImages, places_of, start_workers, training_batches
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shared_memory_ring import BatchHandle, SharedMemoryRing, write_batch
from glioma_dist.data.streams import Stream, StreamHere
from glioma_dist.data.worker_pool import WorkerPool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    # Said once a process by `set_sync_debug_mode`, which as an error would leave the mode on for all tests after it.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]

DEVICE = torch.device("cuda", 0)
SIDE = 512


class Numbers:
    """Batches of one image, all of whose pixels are the task's number; every third has three channels."""

    def __init__(self, ring) -> None:
        self.ring = ring

    def make(self, task, place, note) -> BatchHandle:
        pixels = np.full((SIDE, SIDE), task, np.uint8)
        image = np.broadcast_to(pixels, (1 if task % 3 else 3, SIDE, SIDE))
        shape, flat = write_batch([image], [pixels], place, self.ring)
        return BatchHandle(shape, (task,), (str(task),), SIDE, flat)

    def describe(self, shard, place) -> str:
        return "a number"


def slow_device() -> None:
    """Some 20 ms of work on the current stream."""
    torch.cuda._sleep(40_000_000)


@pytest.mark.parametrize("can_lock", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_no_batch_is_written_over_before_the_device_has_read_it(workers, can_lock):
    """The copies' stream is kept busy, so that copies come long after they were asked for; with pages of the ring
    locked, and with pinned memory beside it where the system does not let them be."""
    num_places = workers * TASKS_AHEAD + 3
    job = Numbers(SharedMemoryRing(num_places, 4 * SIDE * SIDE))
    copier = CudaCopier(DEVICE)
    copier._can_lock = can_lock
    with WorkerPool(workers, job) as pool:
        stream = StreamHere(job, iter(range(60)))
        if workers:
            stream = Stream(pool, 0, iter(range(60)), list(range(num_places)), workers * TASKS_AHEAD, 60)
        sums = []
        for batch in copy_ahead(HostBatches(stream, job.ring), copier):
            with torch.cuda.stream(copier._stream):
                slow_device()
            slow_device()  # the batch is used later than the next is copied
            sums.append(torch.stack([each.double().sum() / each.numel() for each in (batch.images, batch.masks)]))
            assert batch.images.device == DEVICE
    expected = torch.arange(60, dtype=torch.float64)
    assert torch.equal(torch.stack(sums).cpu(), torch.stack([expected, expected], dim=1))
    assert not copier._locked


def test_pages_of_the_ring_are_locked_once():
    job = Numbers(SharedMemoryRing(7, 4 * SIDE * SIDE))
    copier = CudaCopier(DEVICE)
    with WorkerPool(2, job) as pool:
        stream = Stream(pool, 0, iter(range(60)), list(range(7)), 4, 60)
        batches = copy_ahead(HostBatches(stream, job.ring), copier)
        for _ in islice(batches, 50):
            pass
        assert copier._can_lock, "cudaHostRegister refuses the ring's memory"
        assert len(copier._locked) <= 7
        assert all(memory.is_pinned() for memory in copier._locked.values())
        batches.close()


def test_workers_that_are_forked_beside_garbage_of_the_gpu_live(shards, tmp_path):
    """Of an earlier training of this process: a worker that destroyed its events would be ended by CUDA."""
    reader = ShardReader(shards / "train")
    config = replace(tiny_config(shards, tmp_path).data, workers=2)
    order = DeterministicSampler(reader.shard_sizes, 4, seed=0)
    for _ in range(8):
        cycle = [torch.cuda.Event(), torch.cuda.Stream()]
        cycle[0].record(cycle[1])
        cycle.append(cycle)
        del cycle
        with start_workers(config) as pool:
            batches = training_batches(reader, order, config, device=DEVICE, pool=pool)
            for _ in islice(batches, 40):
                pass
            batches.close()


def test_nothing_that_hands_over_a_batch_waits_for_the_device(shards, tmp_path):
    reader = ShardReader(shards / "train")
    config = replace(tiny_config(shards, tmp_path).data, workers=2)
    order = DeterministicSampler(reader.shard_sizes, 4, seed=0)
    with start_workers(config) as pool:
        batches = training_batches(reader, order, config, device=DEVICE, pool=pool)
        next(batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in islice(batches, 10):
                pass
        finally:
            torch.cuda.set_sync_debug_mode("default")
        batches.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_and_validation_images_are_those_of_the_cpu(tmp_path, shards, workers, channels):
    reader = ShardReader(draw_shards(tmp_path / "train", range(10), channels=channels))
    config = replace(tiny_config(shards, tmp_path).data, transform="random-crop", augment=("flips",))
    order = DeterministicSampler(reader.shard_sizes, 4, seed=0)
    expected = list(islice(training_batches(reader, order, config), 8))
    images = list(ValidationImages(reader, config, places_of(reader)))
    with start_workers(replace(config, workers=workers)) as pool:
        shown = ValidationImages(reader, config, places_of(reader), device=DEVICE, pool=pool)
        batches = training_batches(reader, order, config, device=DEVICE, pool=pool)
        for step, other in enumerate(expected):
            pairs = [(next(batches), other), *(zip(shown, images, strict=True) if step % 3 == 0 else [])]
            for one, there in pairs:
                assert one.keys == there.keys
                assert torch.equal(one.images.cpu(), there.images)
                assert torch.equal(one.masks.cpu(), there.masks)
        batches.close()
