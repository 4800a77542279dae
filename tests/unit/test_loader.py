"""Batches: what is in them, the same however they are made; errors as lines; every image visited once."""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import damage_sample, draw_sample, draw_shards, tiny_config, write_shards

from glioma_dist.config import Size
from glioma_dist.data.augment import augment, raise_contrast
from glioma_dist.data.loader import Batch, evaluation_samples, image_tensor, training_batches
from glioma_dist.data.order import Order
from glioma_dist.data.shards import ShardReader
from glioma_dist.errors import InputError


@pytest.fixture
def setting(shards, tmp_path):
    reader = ShardReader(shards / "train")
    return SimpleNamespace(
        reader=reader, order=Order(reader.shard_sizes, 4, seed=11), config=tiny_config(shards, tmp_path).data
    )


def take(setting, number: int, first_step: int = 0, rank: int = 0, num_processes: int = 1, **changes) -> list[Batch]:
    batches = training_batches(
        setting.reader, setting.order, replace(setting.config, **changes), first_step, rank, num_processes
    )
    taken = list(islice(batches, number))
    batches.close()
    return taken


def check_same(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    for name in ("images", "masks", "seeds"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_batch_holds_what_the_order_says(setting):
    """Without chance in it a sample of a batch is the image with its contrast raised, and its seed the place's."""
    whole = replace(setting.config, fit="crop", size=Size(96, 80), augment=())
    for step, batch in enumerate(take(setting, 5, fit="crop", size=whole.size, augment=())):
        for row, place in enumerate(setting.order.batch(step)):
            sample = setting.reader.read(place.shard, place.sample)
            assert (batch.keys[row], batch.seeds[row].item()) == (sample.key, place.seed)
            np.testing.assert_array_equal(batch.images[row, 0], raise_contrast(sample.image, "percentile"))
            np.testing.assert_array_equal(batch.masks[row], sample.mask)


def test_random_changes_come_from_the_places_seed(setting):
    plain = take(setting, 3, fit="crop", size=Size(96, 80), augment=())
    names = ("flips", "sharpen", "contrast")
    for bare, batch in zip(plain, take(setting, 3, fit="crop", size=Size(96, 80), augment=names), strict=True):
        for row, seed in enumerate(bare.seeds.tolist()):
            image, mask = augment(bare.images[row, 0].numpy(), bare.masks[row].numpy(), names, seed)
            np.testing.assert_array_equal(batch.images[row, 0], image)
            np.testing.assert_array_equal(batch.masks[row], mask)


def test_contrast_is_raised_on_the_whole_image_and_not_on_the_crop(setting):
    batch = take(setting, 1, fit="crop", size=Size(16, 16), augment=())[0]
    for row, place in enumerate(setting.order.batch(0)):
        sample = setting.reader.read(place.shard, place.sample)
        whole = raise_contrast(sample.image, "percentile")
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
        joined = Batch(
            *(torch.cat([getattr(share[step], name) for share in shares]) for name in ("images", "masks", "seeds")),
            tuple(key for share in shares for key in share[step].keys),
        )
        check_same(joined, expected)


def test_processes_that_do_not_divide_the_batch_are_refused(setting):
    with pytest.raises(InputError, match=r"--batch-size 4.*3 processes"):
        take(setting, 1, num_processes=3)


def test_grey_and_rgb_mix(tmp_path, setting):
    samples = [draw_sample(number, channels=3 if number % 2 else 1) for number in range(4)]
    reader = ShardReader(write_shards(tmp_path / "mixed", samples))
    mixed = SimpleNamespace(reader=reader, order=Order(reader.shard_sizes, 4, 0), config=setting.config)
    batch = take(mixed, 1, fit="crop", size=Size(96, 80), augment=())[0]
    assert tuple(batch.images.shape) == (4, 3, 80, 96)
    by_key = {sample.key: sample for sample in samples}
    for image, key in zip(batch.images, batch.keys, strict=True):
        expected = np.atleast_3d(raise_contrast(by_key[key].image, "percentile")).transpose(2, 0, 1)
        np.testing.assert_array_equal(image, np.broadcast_to(expected, (3, 80, 96)))


def test_16_bit_images_come_as_bytes_too(tmp_path, setting):
    reader = ShardReader(draw_shards(tmp_path / "deep", range(4), dtype=np.uint16))
    deep = SimpleNamespace(reader=reader, order=Order(reader.shard_sizes, 4, 0), config=setting.config)
    batch = take(deep, 1)[0]
    assert batch.images.dtype == torch.uint8
    assert np.ptp(batch.images.numpy()) > 200


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_one_line_that_names_it(tmp_path, setting, workers):
    folder = draw_shards(tmp_path / "train", range(6))
    damage_sample(folder, "cell-004")
    reader = ShardReader(folder)
    damaged = SimpleNamespace(reader=reader, order=Order(reader.shard_sizes, 3, 0), config=setting.config)
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
        take(setting, 1, fit="crop", size=Size(97, 64), workers=workers)
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
