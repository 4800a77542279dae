"""Batches: what is in them, the same however they are made; errors as lines; every image visited once."""

import os
import signal
import time
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from helpers import damage_sample, draw_sample, draw_shards, tiny_config, write_shards

from glioma_dist.data import sample_cache
from glioma_dist.data.loader import Batch, evaluation_samples, image_tensor, prepare_training_sample, training_batches
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.transforms import augment, normalize_intensity
from glioma_dist.errors import InputError
from glioma_dist.size import Size


@pytest.fixture
def setting(shards, tmp_path):
    reader = ShardReader(shards / "train")
    return SimpleNamespace(
        reader=reader,
        order=DeterministicSampler(reader.shard_sizes, 4, seed=11),
        config=tiny_config(shards, tmp_path).data,
    )


def take(setting, number: int, first_step: int = 0, rank: int = 0, num_processes: int = 1, **changes) -> list[Batch]:
    batches = training_batches(
        setting.reader, setting.order, replace(setting.config, **changes), first_step, rank, num_processes
    )
    taken = list(islice(batches, number))
    batches.close()
    return taken


def join(parts: list[Batch]) -> Batch:
    tensors = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "masks", "seeds"))
    return Batch(*tensors, tuple(key for part in parts for key in part.keys))


def check_same(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    for name in ("images", "masks", "seeds"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_batch_holds_what_the_order_says(setting):
    """Without chance in it a sample of a batch is the image with its contrast raised, and its seed the place's."""
    whole = replace(setting.config, transform="random-crop", size=Size(96, 80), augment=())
    for step, batch in enumerate(take(setting, 5, transform="random-crop", size=whole.size, augment=())):
        for row, place in enumerate(setting.order.batch(step)):
            sample = setting.reader.read(place.shard, place.sample)
            assert (batch.keys[row], batch.seeds[row].item()) == (sample.key, place.seed)
            np.testing.assert_array_equal(batch.images[row, 0], normalize_intensity(sample.image, "percentile"))
            np.testing.assert_array_equal(batch.masks[row], sample.mask)


def test_random_changes_come_from_the_places_seed(setting):
    plain = take(setting, 3, transform="random-crop", size=Size(96, 80), augment=())
    names = ("flips", "sharpen", "contrast")
    for bare, batch in zip(
        plain, take(setting, 3, transform="random-crop", size=Size(96, 80), augment=names), strict=True
    ):
        for row, seed in enumerate(bare.seeds.tolist()):
            image, mask = augment(bare.images[row, 0].numpy(), bare.masks[row].numpy(), names, seed)
            np.testing.assert_array_equal(batch.images[row, 0], image)
            np.testing.assert_array_equal(batch.masks[row], mask)


def test_contrast_is_raised_on_the_whole_image_and_not_on_the_crop(setting):
    batch = take(setting, 1, transform="random-crop", size=Size(16, 16), augment=())[0]
    for row, place in enumerate(setting.order.batch(0)):
        sample = setting.reader.read(place.shard, place.sample)
        whole = normalize_intensity(sample.image, "percentile")
        windows = np.lib.stride_tricks.sliding_window_view(whole, (16, 16))
        assert (windows == batch.images[row, 0].numpy()).all(axis=(2, 3)).any()


def test_grey_batches_have_one_channel_of_bytes(setting):
    batch = take(setting, 1)[0]
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (4, 1, 64, 64))
    assert (batch.masks.dtype, tuple(batch.masks.shape)) == (torch.uint8, (4, 64, 64))
    assert batch.seeds.dtype == torch.int64
    assert set(batch.masks.unique().tolist()) <= {0, 1}


def test_workers_do_not_change_a_batch(setting):
    expected = take(setting, 5)
    for one, other in zip(expected, take(setting, 5, workers=2), strict=True):
        check_same(one, other)
    for one, other in zip(expected[3:], take(setting, 2, first_step=3, workers=2), strict=True):
        check_same(one, other)


def test_batches_may_begin_anywhere(setting):
    expected = take(setting, 6)
    for first in range(6):
        check_same(take(setting, 1, first_step=first)[0], expected[first])


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_the_processes_shares_join_to_the_batch(setting, num_processes):
    shares = [take(setting, 3, rank=rank, num_processes=num_processes) for rank in range(num_processes)]
    for step, expected in enumerate(take(setting, 3)):
        check_same(join([share[step] for share in shares]), expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_may_go_on_with_other_processes_and_workers_at_any_step(setting):
    """Nine ways to load, two steps each, one after the other through seven epochs: the batches of one way."""
    ways = [(num_processes, workers) for num_processes in (1, 2, 4) for workers in (0, 1, 3)]
    expected = take(setting, 2 * len(ways))
    assert setting.order.steps_per_epoch == 2
    for first_step, (num_processes, workers) in zip(range(1, 2 * len(ways) - 1, 2), ways, strict=False):
        shares = [
            take(setting, 2, first_step, rank=rank, num_processes=num_processes, workers=workers)
            for rank in range(num_processes)
        ]
        for step in range(2):
            check_same(join([share[step] for share in shares]), expected[first_step + step])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("num_processes", "workers", "batch_size"), [(1, 3, 2), (2, 1, 2), (5, 0, 10)])
def test_an_epoch_shows_every_sample_once_where_the_batch_divides_them(setting, num_processes, workers, batch_size):
    order = DeterministicSampler(setting.reader.shard_sizes, batch_size, seed=1)
    divided = SimpleNamespace(reader=setting.reader, order=order, config=setting.config)
    shares = [
        take(divided, order.steps_per_epoch, rank=rank, num_processes=num_processes, workers=workers)
        for rank in range(num_processes)
    ]
    keys = [key for share in shares for batch in share for key in batch.keys]
    assert sorted(keys) == sorted(setting.reader.keys())


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_make_the_same_batches_and_are_read_once(setting, workers):
    reads = []

    class Counting:
        shard_sizes = setting.reader.shard_sizes

        def __len__(self):
            return len(setting.reader)

        def read(self, shard, place, with_instances=True, choose_rows=None):
            reads.append((shard, place))
            return setting.reader.read(shard, place)

    counted = SimpleNamespace(reader=Counting(), order=setting.order, config=setting.config)
    kept = take(counted, 8, workers=workers, cache_in_memory=True)
    assert sorted(reads) == [(shard, place) for shard, size in enumerate([3, 3, 3, 1]) for place in range(size)]
    for one, other in zip(kept, take(setting, 8), strict=True):
        check_same(one, other)


@pytest.mark.parametrize("limit", ["machine", "control group"])
def test_images_that_memory_does_not_hold_are_not_kept(setting, monkeypatch, limit):
    # Two samples of 96x80, image and mask, are 30,720 bytes.
    machine, groups = (61_000, []) if limit == "machine" else (10**12, [10**9, 61_000])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=machine))
    monkeypatch.setattr(sample_cache, "free_in_cgroups", lambda: iter(groups), raising=False)
    with pytest.raises(InputError, match=r"--data.cache-in-memory: 2 of 10 samples take 30720 bytes already"):
        take(setting, 1, cache_in_memory=True)


def test_a_worker_that_dies_names_its_sample(setting):
    victim = setting.order.batch(3)[2]
    key = setting.reader.read(victim.shard, victim.sample).key

    class Deadly(ShardReader):
        def read(self, shard, place, with_instances=True, choose_rows=None):
            if (shard, place) == (victim.shard, victim.sample):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(shard, place, with_instances, choose_rows)

    deadly = SimpleNamespace(
        reader=Deadly(setting.reader.describe(0, 0).partition("/00000.tar")[0]),
        order=setting.order,
        config=setting.config,
    )
    with pytest.raises(InputError, match=rf"0000{victim.shard}.tar: sample {key}: the worker process that prepared it"):
        take(deadly, 6, workers=2)


def test_processes_that_do_not_divide_the_batch_are_refused(setting):
    with pytest.raises(InputError, match=r"--batch-size 4.*3 processes"):
        take(setting, 1, num_processes=3)


def test_a_slow_reader_finds_no_batch_written_over(setting):
    """Workers are as far ahead as they may be whenever a batch is asked for; those given out stay as they are."""
    batches, given = training_batches(setting.reader, setting.order, replace(setting.config, workers=2), 0, 0, 1), []
    for batch in islice(batches, 12):
        time.sleep(0.05)
        given.append(batch)
    batches.close()
    for one, other in zip(given, take(setting, 12), strict=True):
        check_same(one, other)


@pytest.mark.parametrize("workers", [0, 1])
def test_grey_and_rgb_mix(tmp_path, setting, workers):
    samples = [draw_sample(number, channels=3 if number % 2 else 1) for number in range(4)]
    reader = ShardReader(write_shards(tmp_path / "mixed", samples))
    mixed = SimpleNamespace(reader=reader, order=DeterministicSampler(reader.shard_sizes, 4, 0), config=setting.config)
    batch = take(mixed, 1, transform="random-crop", size=Size(96, 80), augment=(), workers=workers)[0]
    assert tuple(batch.images.shape) == (4, 3, 80, 96)
    by_key = {sample.key: sample for sample in samples}
    for image, key in zip(batch.images, batch.keys, strict=True):
        expected = np.atleast_3d(normalize_intensity(by_key[key].image, "percentile")).transpose(2, 0, 1)
        np.testing.assert_array_equal(image, np.broadcast_to(expected, (3, 80, 96)))


@pytest.mark.parametrize("how", ["percentile", "clahe", "none"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_three_channels_that_are_alike_are_handled_as_one_and_look_the_same(tmp_path, setting, how, dtype):
    grey = [draw_sample(number, dtype=dtype) for number in range(6)]
    triple = [replace(sample, image=np.repeat(sample.image[..., None], 3, axis=2)) for sample in grey]
    batches = []
    for name, samples in (("grey", grey), ("triple", triple)):
        reader = ShardReader(write_shards(tmp_path / name, samples))
        drawn = SimpleNamespace(
            reader=reader, order=DeterministicSampler(reader.shard_sizes, 2, 0), config=setting.config
        )
        batches.append(take(drawn, 6, intensity_normalization=how))
    for one, other in zip(*batches, strict=True):
        check_same(one, other)
    images = [np.stack([sample.image for sample in samples]) for samples in (grey, triple)]
    assert images[1].ndim == images[0].ndim + 1
    for step, batch in enumerate(batches[1]):
        for row, place in enumerate(DeterministicSampler([3, 3], 2, 0).batch(step)):
            # As three channels, without the short cut.
            sample = triple[3 * place.shard + place.sample]
            whole = replace(sample, image=normalize_intensity(sample.image, how))
            image, mask = prepare_training_sample(whole, setting.config, place.seed)
            np.testing.assert_array_equal(image_tensor(image), batch.images[row].expand(3, -1, -1))
            np.testing.assert_array_equal(mask, batch.masks[row])


def test_colours_stay(tmp_path, setting):
    """Also where only one pixel has any."""
    samples = [draw_sample(number) for number in range(2)]
    samples = [replace(sample, image=np.repeat(sample.image[..., None], 3, axis=2)) for sample in samples]
    for sample in samples:
        sample.image[57, 33, 1] ^= 128
    reader = ShardReader(write_shards(tmp_path / "few", samples))
    few = SimpleNamespace(reader=reader, order=DeterministicSampler(reader.shard_sizes, 2, 0), config=setting.config)
    assert take(few, 1)[0].images.shape[1] == 3


def test_16_bit_images_come_as_bytes_too(tmp_path, setting):
    reader = ShardReader(draw_shards(tmp_path / "deep", range(4), dtype=np.uint16))
    deep = SimpleNamespace(reader=reader, order=DeterministicSampler(reader.shard_sizes, 4, 0), config=setting.config)
    batch = take(deep, 1)[0]
    assert batch.images.dtype == torch.uint8
    assert np.ptp(batch.images.numpy()) > 200


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_one_line_that_names_it(tmp_path, setting, workers):
    folder = draw_shards(tmp_path / "train", range(6))
    damage_sample(folder, "cell-004")
    reader = ShardReader(folder)
    damaged = SimpleNamespace(
        reader=reader, order=DeterministicSampler(reader.shard_sizes, 3, 0), config=setting.config
    )
    with pytest.raises(InputError) as error:
        take(damaged, 2, workers=workers)
    assert "cell-004" in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="cell-004"):
        list(evaluation_samples(reader, 0, 1, workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_crop_larger_than_an_image_is_one_line_that_names_it(setting, workers):
    with pytest.raises(InputError, match=r"sample cell-\d+ is 96x80") as error:
        take(setting, 1, transform="random-crop", size=Size(97, 64), workers=workers)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 12])
def test_evaluation_visits_each_sample_once(setting, num_processes):
    parts = [
        [sample.key for sample in evaluation_samples(setting.reader, rank, num_processes, 0)]
        for rank in range(num_processes)
    ]
    assert sorted(key for part in parts for key in part) == [f"cell-{number:03d}" for number in range(10)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_evaluation_gives_samples_as_taken_in_the_shards_order(setting):
    found = list(evaluation_samples(setting.reader, 0, 1, 2))
    assert [sample.key for sample in found] == setting.reader.keys()
    for number, sample in enumerate(found):
        expected = draw_sample(number)
        np.testing.assert_array_equal(sample.image, expected.image)
        np.testing.assert_array_equal(sample.mask, expected.mask)


def test_an_image_becomes_channels_first():
    grey, colour = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert image_tensor(grey).tolist() == [grey.tolist()]
    assert image_tensor(colour).tolist() == colour.transpose(2, 0, 1).tolist()
    assert image_tensor(colour[:, ::-1]).tolist() == colour[:, ::-1].transpose(2, 0, 1).tolist()


def test_memory_stays_as_it_is_through_many_epochs(setting):
    def resident_mib() -> float:
        return psutil.Process().memory_info().rss / 2**20

    batches = training_batches(setting.reader, setting.order, setting.config, 0, 0, 1)
    for _ in islice(batches, 50):
        pass
    before = resident_mib()
    for _ in islice(batches, 400):
        pass
    assert resident_mib() - before < 4  # 400 batches are 13 MiB, and their images decoded 23
