"""Workers of a run: forked once and early, the same results in the same order, whatever runs beside and ends early."""

import faulthandler
import gc
import mmap
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forks import wait_until
from helpers import TINY_CHANNELS, damage_sample, draw_sample, draw_shards, rows, run, start, tiny_config, write_shards

from glioma_dist.data.batch import Batch, image_tensor
from glioma_dist.data.device_copies import HostBatch, HostBatches, copy_ahead
from glioma_dist.data.loader import (
    TASKS_AHEAD,
    ValidationImages,
    evaluation_samples,
    places_of,
    prepare_evaluation_sample,
    start_workers,
    training_batches,
)
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shared_memory_ring import BatchHandle, SharedMemory, SharedMemoryRing, write_batch
from glioma_dist.data.streams import Stream, StreamHere
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.data.worker_pool import WorkerPool
from glioma_dist.errors import InputError, StopRequested, UnavailableError
from glioma_dist.size import Size
from glioma_dist.training.loop import train

TRANSFORMS = ("resize", "random-crop", "random-resized-crop")


@pytest.fixture
def setting(shards, tmp_path):
    reader = ShardReader(shards / "train")
    return SimpleNamespace(
        reader=reader,
        val=ShardReader(shards / "val"),
        order=DeterministicSampler(reader.shard_sizes, 4, seed=11),
        config=replace(tiny_config(shards, tmp_path).data, augment=("flips", "sharpen")),
    )


def batches_of(setting, first_step: int = 0, **how):
    return training_batches(setting.reader, setting.order, setting.config, first_step, **how)


def check_same(one: Batch, other: Batch) -> None:
    assert (one.keys, one.height) == (other.keys, other.height)
    for name in ("images", "masks", "seeds"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


# What a run sees of its workers.


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_batches_and_validation_images_of_one_pool_are_those_of_one_process(setting, workers):
    """Validation after every second batch, cut short once; then the rest from a later step, as a resumed run."""
    expected = list(islice(batches_of(setting), 8))
    images = list(ValidationImages(setting.val, setting.config, places_of(setting.val)))
    setting.config = replace(setting.config, workers=workers)
    with start_workers(setting.config) as pool:
        shown = ValidationImages(setting.val, setting.config, places_of(setting.val), pool=pool)
        for first, number in ((0, 6), (5, 3)):
            batches = batches_of(setting, first, pool=pool)
            for step in range(first, first + number):
                check_same(next(batches), expected[step])
                if step == 2:
                    begun = iter(shown)
                    check_same(next(begun), images[0])
                    begun.close()
                if step % 2:
                    for one, other in zip(shown, images, strict=True):
                        check_same(one, other)
            batches.close()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_strips", [1, 2])
def test_validation_shows_strips_of_what_is_prepared_here(tmp_path, setting, transform, channels, num_strips):
    reader = ShardReader(draw_shards(tmp_path / "val", range(3), channels=channels))
    config = replace(setting.config, transform=transform, workers=1)
    with start_workers(config) as pool:
        strips = [
            list(ValidationImages(reader, config, places_of(reader), (strip, num_strips), pool=pool))
            for strip in range(num_strips)
        ]
    for number, place in enumerate(places_of(reader)):
        image, mask = prepare_evaluation_sample(reader.read(*place), config)
        parts = [strip[number] for strip in strips]
        assert {part.height for part in parts} == {len(mask)}
        assert torch.equal(torch.cat([part.images for part in parts], dim=2), image_tensor(image)[None])
        assert torch.equal(torch.cat([part.masks for part in parts], dim=1), torch.from_numpy(mask)[None])


@pytest.mark.parametrize("workers", [0, 2])
def test_strips_of_batches_join_to_the_whole(setting, workers):
    setting.config = replace(setting.config, workers=workers)
    parts = [list(islice(batches_of(setting, rows=slice(32 * n, 32 * n + 32)), 3)) for n in range(2)]
    setting.config = replace(setting.config, workers=0)
    for whole, *strips in zip(islice(batches_of(setting), 3), *parts, strict=True):
        assert torch.equal(torch.cat([strip.images for strip in strips], dim=2), whole.images)
        assert torch.equal(torch.cat([strip.masks for strip in strips], dim=1), whole.masks)
        assert all(strip.images.is_contiguous() and strip.height == 64 for strip in strips)


@pytest.mark.parametrize("cache_in_memory", [False, True])
def test_samples_kept_in_memory_reach_workers_that_were_forked_before(setting, cache_in_memory):
    expected = list(islice(batches_of(setting), 4))
    setting.config = replace(setting.config, workers=2, cache_in_memory=cache_in_memory)
    with start_workers(setting.config) as pool:
        for one, other in zip(islice(batches_of(setting, pool=pool), 4), expected, strict=True):
            check_same(one, other)


@pytest.mark.parametrize("how", [None, "percentile", "clahe", "none"])
def test_workers_raise_the_contrast_of_samples_to_be_scored(setting, how):
    with WorkerPool(2) as pool:
        found = list(evaluation_samples(setting.val, 0, 1, 2, 30, how, pool))
    assert [sample.key for sample in found] == setting.val.keys()
    for sample, place in zip(found, places_of(setting.val), strict=True):
        expected = setting.val.read(*place)
        image = expected.image if how is None else normalize_intensity(expected.image, how)
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.mask, expected.mask)


def test_images_larger_than_a_place_cross_all_the_same(tmp_path, setting, monkeypatch):
    """Validation after random crops shows whole images, whose size is not known before."""
    from glioma_dist.data import loader

    monkeypatch.setattr(loader, "LEAST_PLACE_BYTES", 1)
    config = replace(setting.config, transform="random-crop", size=Size(32, 32), workers=1)
    with start_workers(config) as pool:
        for image, place in zip(
            ValidationImages(setting.val, config, places_of(setting.val), pool=pool),
            places_of(setting.val),
            strict=True,
        ):
            assert image.images.shape == (1, 1, *setting.val.read(*place).mask.shape)


# How many processes there are, and when they start.


def count_forks(config, command: list[str] | None) -> list[str]:
    """For each fork of a training, what had been set up by then."""
    forks = []

    def note() -> None:
        from accelerate.state import PartialState

        joined = torch.distributed.is_available() and torch.distributed.is_initialized()
        forks.append(f"accelerate {bool(PartialState._shared_state)}, connected {joined}")

    os.register_at_fork(before=note)
    if command is None:
        from glioma_dist.training.loop import train

        train(config)
    else:
        from glioma_dist.cli.program import run as run_program

        run_program(command)
    return forks


def flags_of(config) -> list[str]:
    return [
        *("train", "--data.train", *config.data.train, "--data.val", config.data.val, "--out", str(config.out)),
        *("--data.size", str(config.data.size), "--data.transform", config.data.transform, "--max-steps", "6"),
        *("--data.workers", str(config.data.workers), "--batch-size", str(config.batch_size), "--eval-every", "2"),
        *("--data.augment", "flips", "--model.encoder", "mit_tiny", "--model.decoder-channels"),
        *map(str, TINY_CHANNELS),
    ]


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("way", ["command", "call"])
def test_a_run_with_three_validations_forks_its_workers_once_before_all_else(shards, tmp_path, way, num_processes):
    config = tiny_config(shards, tmp_path / "run", workers=2, max_steps=6, eval_every=2)
    command = flags_of(config) if way == "command" else None
    forks = run(count_forks, config, command, num_processes=num_processes)
    assert forks == [["accelerate False, connected False"] * 2] * num_processes
    assert sum("split" in row for row in rows(config.out)) == 3


def score_and_count(checkpoint, data) -> list[str]:
    forks = []
    os.register_at_fork(before=lambda: forks.append(torch.distributed.is_initialized()))
    from glioma_dist.cli.program import run as run_program

    run_program(["evaluate", "--checkpoint", str(checkpoint), "--data", str(data), "--workers", "1"])
    return forks


def test_an_evaluation_forks_its_workers_once_before_all_else(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", max_steps=1, eval_every=1)
    run(count_forks, config, None)
    assert run(score_and_count, config.out / "best", shards / "val", num_processes=2) == [[False]] * 2


def test_ending_a_pool_leaves_no_process_and_no_open_file(setting):
    def open_files() -> int:
        gc.collect()  # so that what other tests left closes now
        return len(os.listdir("/proc/self/fd"))

    for _ in range(2):  # what the first opens for good is not counted
        before = open_files(), multiprocessing.active_children()
        with WorkerPool(3) as pool:
            assert len(multiprocessing.active_children()) == len(before[1]) + 3
            list(islice(batches_of(setting, pool=pool), 2))
            list(ValidationImages(setting.val, setting.config, places_of(setting.val), pool=pool))
        after = open_files(), multiprocessing.active_children()
    assert after[0] <= before[0]  # fewer where something of another test closed meanwhile
    assert after[1] == before[1]


# What goes wrong.


class Doing:
    """A job that calls what it is given, in the worker."""

    def __init__(self, function) -> None:
        self.function = function

    def make(self, task, place, note):
        note(3, task)
        return self.function(task)

    def describe(self, shard, place) -> str:
        return f"shard {shard}, sample {place}"


def stream_of(pool, job, tasks, places=8, seconds_to_answer=60):
    return Stream(pool, job, iter(tasks), list(range(places)), 4, seconds_to_answer)


class UnpicklableError(Exception):
    def __init__(self, one, two) -> None:
        super().__init__("of two")


class OwnInputError(InputError):
    def __init__(self, one, two) -> None:
        super().__init__(f"{one} of {two}")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (InputError("sample 1: no"), InputError, "sample 1: no"),
        (UnavailableError("store"), UnavailableError, "store"),
        (StopRequested("stop"), StopRequested, "stop"),
        (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug"),
        (MemoryError(), MemoryError, ""),
        (UnpicklableError(1, 2), RuntimeError, "UnpicklableError: of two"),
        (OwnInputError(1, 2), InputError, "1 of 2"),
    ],
)
def test_what_a_worker_raises_is_raised_in_its_turn(error, kind, said):
    def fail_at_two(task):
        if task == 2:
            raise error
        return task

    with WorkerPool(2, Doing(fail_at_two)) as pool:
        stream = stream_of(pool, 0, range(5))
        assert [next(stream)[0] for _ in range(2)] == [0, 1]
        with pytest.raises(kind) as raised:
            next(stream)
        assert said in str(raised.value)
        traced = "fail_at_two" in str(raised.value) + "".join(getattr(raised.value, "__notes__", []))
        assert traced == (not issubclass(kind, InputError | StopRequested))
        assert [next(stream)[0] for _ in range(2)] == [3, 4]  # the worker lives on


class Owned:
    """Garbage as soon as nothing else refers to it: it refers to itself. `destroyed` lists the processes it died in."""

    def __init__(self, destroyed: Path) -> None:
        self.destroyed, self.itself = destroyed, self

    def __del__(self) -> None:
        with self.destroyed.open("a") as file:
            file.write(f"{os.getpid()}\n")


def test_a_worker_leaves_its_parents_garbage_alone(tmp_path):
    """A second training of a process forks beside what the first has left on the GPU."""
    destroyed, gc_was_on = tmp_path / "destroyed", gc.isenabled()
    gc.disable()
    try:
        Owned(destroyed)
        with WorkerPool(2, Doing(lambda task: gc.collect() and None)) as pool:
            list(stream_of(pool, 0, range(4)))
        assert not destroyed.exists()
        gc.collect()
        assert destroyed.read_text() == f"{os.getpid()}\n"
    finally:
        if gc_was_on:
            gc.enable()


def test_what_cannot_cross_is_an_error():
    with WorkerPool(1, Doing(lambda task: threading.Lock())) as pool, pytest.raises(RuntimeError, match="lock"):
        next(stream_of(pool, 0, [1]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_is_named_with_its_sample(number):
    def die_at_two(task):
        if task == 2:
            faulthandler.disable()  # pytest's
            os.kill(os.getpid(), number)
        return task

    with WorkerPool(2, Doing(die_at_two)) as pool:
        stream = stream_of(pool, 0, range(9))
        message = rf"shard 3, sample 2: the worker process that prepared it died \(signal {number.name}\)"
        with pytest.raises(UnavailableError, match=message):
            list(stream)


def test_a_worker_that_dies_is_told_of_where_nobody_can_name_its_sample(monkeypatch):
    """As where the names are in a store that does not answer, which would be told in its place, with another code."""

    def refuse(*_):
        raise InputError("no table")

    monkeypatch.setattr(Doing, "describe", refuse)
    with WorkerPool(1, Doing(lambda task: os.kill(os.getpid(), signal.SIGKILL))) as pool:
        stream = stream_of(pool, 0, [2])
        with pytest.raises(UnavailableError, match=r"^sample 2 of shard 3: the worker process that prepared it died"):
            next(stream)


@pytest.mark.parametrize("has_results", [False, True])
def test_an_idle_worker_that_died_is_noticed_when_the_run_next_waits(has_results):
    made = mmap.mmap(-1, 9)

    def make(task):
        made[task] = 1
        return task

    with WorkerPool(2, Doing(make)) as pool:
        stream = stream_of(pool, 0, range(9))
        if has_results:
            next(stream)
            # All four that were asked for are made, and handed over.
            wait_until(lambda: made[:4] == 4 * b"\1" and all(each.endswith(" waits") for each in pool.states()))
        worker = pool._processes[0]
        worker.kill()
        assert multiprocessing.connection.wait([worker.sentinel], 60)
        with pytest.raises(UnavailableError, match=r"a worker process that reads data died \(signal SIGKILL\)"):
            next(stream)


def test_a_worker_that_is_stopped_counts_as_lost_and_does_not_hold_the_end():
    with WorkerPool(1, Doing(lambda task: task)) as pool:
        os.kill(pool._processes[0].pid, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match="did not answer for 2 s"):
            next(stream_of(pool, 0, range(9), seconds_to_answer=2))
        assert time.monotonic() - begun < 60


def test_a_pool_ends_while_workers_are_at_long_tasks():
    pool = WorkerPool(2, Doing(lambda task: time.sleep(1000)))
    stream = stream_of(pool, 0, range(4))
    assert not stream.is_ready()
    begun = time.monotonic()
    pool.close()
    assert time.monotonic() - begun < 30
    assert not multiprocessing.active_children()


def start_with_few_files() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        WorkerPool(50)
    except InputError as error:
        return f"{error}; {len(multiprocessing.active_children())} left"
    return "started"


def test_too_many_workers_are_one_line_and_none_is_left():
    (said,) = run(start_with_few_files)
    assert said.startswith("50 workers: the system cannot start that many processes (Too many open files); give fewer")
    assert said.endswith("0 left")


def kill_parent_of_workers(folder) -> None:
    with WorkerPool(2):
        pids = [process.pid for process in multiprocessing.active_children()]
        (folder / "pids").write_text(" ".join(map(str, pids)))
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_die_with_their_parent(tmp_path):
    start(kill_parent_of_workers, tmp_path).wait()
    until = time.monotonic() + 20
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    while time.monotonic() < until and any(os.path.exists(f"/proc/{pid}/exe") for pid in pids):
        time.sleep(0.05)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")]


# Who may write where.


def test_a_place_of_a_stream_that_ended_early_is_free_when_its_worker_is_done():
    """Else two tasks would write to it at once."""
    places, may_end = list(range(5)), multiprocessing.get_context("fork").Event()
    with WorkerPool(1, Doing(lambda task: task == 0 or may_end.wait(60))) as pool:
        stream = Stream(pool, 0, iter(range(9)), places, 2, 30)
        next(stream)
        assert not stream.is_ready()  # asks for another
        assert len(places) == 2  # two are under way, one is given out
        stream.close()
        assert len(places) == 2
        may_end.set()
        while len(places) < 4:
            pool._receive(30)
        assert sorted(places) == [1, 2, 3, 4]


def test_memory_that_is_sent_is_shared():
    class Writer:
        def __init__(self) -> None:
            self.memory = SharedMemory(10)

        def make(self, task, place, note) -> None:
            self.memory.array(task, 1)[0] = task

    globals()["Writer"] = Writer
    Writer.__qualname__ = "Writer"
    with WorkerPool(2) as pool:
        job = Writer()
        list(stream_of(pool, pool.add_job(job), range(8)))
        assert job.memory.array(0, 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 0]


def test_runs_that_share_a_pool_leave_nothing_in_it(shards, tmp_path):
    def descriptors() -> list[int]:
        gc.collect()
        list(stream_of(pool, 0, range(8)))  # workers have done all that they were told before
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), *workers)]

    with WorkerPool(2, Doing(lambda task: task)) as pool:
        workers = [process.pid for process in pool._processes]
        counts = []
        for number in range(3):
            train(tiny_config(shards, tmp_path / str(number), workers=2, max_steps=2, eval_every=1), None, pool)
            counts.append(descriptors())
        assert counts[0][1:] == counts[1][1:] == counts[2][1:]
        assert counts[0][0] >= counts[1][0] >= counts[2][0]  # fewer where something of another test closed meanwhile
        assert len(pool._jobs) == 1


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_worker_that_dies_as_it_is_handed_a_job_is_a_lost_worker(monkeypatch, moment):
    job = Numbers(SharedMemoryRing(7, 2 * 64 * 64))
    with WorkerPool(2) as pool:

        def end_one() -> None:
            os.kill(pool._processes[1].pid, signal.SIGKILL)
            pool._processes[1].join(20)

        tell = pool._tell
        if moment == "before":
            end_one()
        else:
            monkeypatch.setattr(pool, "_tell", lambda worker, message: (tell(worker, message), worker and end_one()))
        with pytest.raises(UnavailableError, match=r"worker process that reads data died \(signal SIGKILL\)"):
            pool.add_job(job)


def start_pool_in_a_daemon(told: multiprocessing.SimpleQueue) -> None:
    WorkerPool(0).close()
    try:
        WorkerPool(2)
    except InputError as error:
        told.put(str(error))


def test_a_process_that_may_have_none_of_its_own_is_told_so():
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    process = context.Process(target=start_pool_in_a_daemon, args=(told,), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert not told.empty()
    assert "--data.workers 0" in told.get()


class SlowCopier:
    """To memory of its own, by a thread that waits before each: reads a batch long after it was given out, as a device
    may that is behind."""

    def __init__(self) -> None:
        self.stream = ThreadPoolExecutor(1)

    def start(self, batch: HostBatch) -> SimpleNamespace:
        copy = SimpleNamespace(handle=batch.handle, flat=torch.zeros_like(batch.flat))
        copy.done = self.stream.submit(self._read, copy.flat, batch.flat)
        return copy

    def _read(self, to: torch.Tensor, source: torch.Tensor) -> None:
        time.sleep(0.02)
        to.copy_(source)

    def finish(self, copy: SimpleNamespace) -> Batch:
        return Batch.of(copy.handle, copy.flat)

    def wait(self, copy: SimpleNamespace) -> None:
        copy.done.result()

    def close(self) -> None:
        self.stream.shutdown()


class Numbers:
    """Batches of one image, all of whose pixels are the task's number."""

    def __init__(self, ring, bad: int = -1) -> None:
        self.ring, self.bad = ring, bad

    def make(self, task, place, note) -> BatchHandle:
        if task == self.bad:
            raise InputError(f"batch {task} is bad")
        pixels = np.full((64, 64), task, np.uint8)
        shape, flat = write_batch([pixels[None]], [pixels], place, self.ring)
        return BatchHandle(shape, (task,), (str(task),), 64, flat)

    def describe(self, shard, place) -> str:
        return "a number"


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("place_bytes", [2 * 64 * 64, 1])
def test_no_batch_is_written_over_before_it_is_read(workers, place_bytes):
    """Batches copied ahead by a device that reads late; in a ring, and where they do not fit it."""
    num_places = 2 * workers + 3
    job = Numbers(SharedMemoryRing(num_places, place_bytes))
    with WorkerPool(workers, job) as pool:
        stream = StreamHere(job, iter(range(30)))
        if workers:
            stream = Stream(pool, 0, iter(range(30)), list(range(num_places)), workers * TASKS_AHEAD, 30)
        batches = list(copy_ahead(HostBatches(stream, job.ring), SlowCopier()))
    assert [batch.keys for batch in batches] == [(str(number),) for number in range(30)]
    for number, batch in enumerate(batches):
        assert batch.images.shape == (1, 1, 64, 64)
        assert batch.images.unique().tolist() == batch.masks.unique().tolist() == [number]


def test_a_fault_ahead_waits_for_its_turn():
    job = Numbers(SharedMemoryRing(7, 2 * 64 * 64), bad=3)
    with WorkerPool(2, job) as pool:
        stream = Stream(pool, 0, iter(range(9)), list(range(7)), 4, 30)
        batches = copy_ahead(HostBatches(stream, job.ring), SlowCopier())
        for number in range(3):
            time.sleep(0.1)  # the next is there by now
            assert next(batches).keys == (str(number),)
        with pytest.raises(InputError, match="batch 3 is bad"):
            next(batches)


def test_the_copy_of_the_next_batch_has_begun_when_one_is_given_out():
    begun = []

    class Noting(SlowCopier):
        def start(self, batch):
            begun.append(batch.handle.keys[0])
            return super().start(batch)

    job = Numbers(SharedMemoryRing(7, 2 * 64 * 64))
    with WorkerPool(2, job) as pool:
        stream = Stream(pool, 0, iter(range(9)), list(range(7)), 4, 30)
        batches = copy_ahead(HostBatches(stream, job.ring), Noting())
        for number in range(3):
            next(batches)
            if number:
                assert begun == [str(each) for each in range(number + 2)]
            wait_until(lambda: stream.is_ready() and all(pool.has(ticket) for ticket, _ in stream._under_way))
        batches.close()


def test_every_round_gives_back_all_places():
    """As many validations as there are places, on a device that reads late: of all images, cut short, and with a fault
    of the next batch or of its copy."""

    class Failing(SlowCopier):
        def start(self, batch):
            if batch.handle.keys == ("3",):
                raise RuntimeError("the device fails")
            return super().start(batch)

    places = list(range(7))
    job = Numbers(SharedMemoryRing(7, 2 * 64 * 64), bad=6)
    with WorkerPool(2, job) as pool:
        for tasks, number, copier in [(range(6), 6, SlowCopier), (range(6), 2, SlowCopier)] * 4 + [
            (range(9), 6, SlowCopier),
            (range(6), 3, Failing),
        ] * 4:
            stream = Stream(pool, 0, iter(tasks), places, 4, 30)
            batches = copy_ahead(HostBatches(stream, job.ring), copier())
            assert [next(batches).keys for _ in range(number)] == [(str(each),) for each in range(number)]
            if copier is Failing or len(tasks) > 6:
                with pytest.raises((InputError, RuntimeError), match=r"batch 6 is bad|the device fails"):
                    next(batches)
            time.sleep(0.05)  # the next is begun by now
            batches.close()
            stream.close()
        while len(places) < 7:
            pool._receive(30)
        assert sorted(places) == list(range(7))


def test_a_damaged_sample_ends_a_pools_stream_with_one_line(tmp_path, setting):
    folder = write_shards(tmp_path / "damaged", [draw_sample(number) for number in range(6)])
    damage_sample(folder, "cell-004")
    reader = ShardReader(folder)
    with WorkerPool(2) as pool:
        for images in (
            ValidationImages(reader, setting.config, places_of(reader), pool=pool),
            evaluation_samples(reader, 0, 1, 2, 30, None, pool),
        ):
            with pytest.raises(InputError, match="cell-004"):
                list(images)
