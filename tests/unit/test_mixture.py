"""Several sources: joined, or drawn from by weight, as exactly as from one."""

import pickle
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import draw_shards, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from glioma_dist.data.loader import training_batches
from glioma_dist.data.mixture import (
    JoinedShards,
    MixtureSampler,
    block_counts,
    open_training_data,
    open_validation_data,
)
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError

SIZES = [[7, 5, 0, 9], [4, 4], [11]]


def source_of(shard: int) -> int:
    return int(np.searchsorted(np.cumsum([len(sizes) for sizes in SIZES]), shard, side="right"))


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((0.8, 0.2), [4, 1]),
        ((1, 1), [1, 1]),
        ((3, 1, 1), [3, 1, 1]),
        ((0.5, 0.3, 0.2), [5, 3, 2]),
        ((0.667, 0.333), [667, 333]),
        ((2**0.5, 1), [586, 414]),
        ((999, 1), [999, 1]),
    ],
)
def test_a_block_has_the_weights_exactly_where_it_can(weights, counts):
    assert block_counts(weights) == counts


def test_a_weight_of_next_to_nothing_is_refused():
    with pytest.raises(InputError, match=r"--data.weights 1 0.0001: the least is below a thousandth"):
        block_counts((1, 0.0001))


def test_every_block_of_a_slot_has_each_sources_share():
    mixture = MixtureSampler(SIZES, (0.5, 0.3, 0.2), batch_size=4, seed=2)
    drawn = np.array([[source_of(place.shard) for place in mixture.batch(step)] for step in range(200)])
    for slot in range(4):
        for block in drawn[:, slot].reshape(-1, 10):
            assert Counter(block.tolist()) == {0: 5, 1: 3, 2: 2}
    # Not the same steps in each block and slot.
    assert len({tuple(block) for slot in range(4) for block in drawn[:, slot].reshape(-1, 10).tolist()}) > 60


def test_each_source_is_gone_through_before_it_begins_again():
    """A slot's draws of a source are that source's own order for the slot: in each of its epochs no sample twice."""
    mixture = MixtureSampler(SIZES, (2, 1, 1), batch_size=4, seed=5)
    steps = 4 * 4 * 5
    for source, first_shard in enumerate((0, 4, 6)):
        drawn = {slot: [] for slot in range(4)}
        for step in range(steps):
            for slot, place in enumerate(mixture.batch(step)):
                if source_of(place.shard) == source:
                    drawn[slot].append((place.shard - first_shard, place.sample))
        epoch = sum(SIZES[source]) // 4
        for start in range(0, epoch * 3, epoch):
            seen = [place for slot in range(4) for place in drawn[slot][start : start + epoch]]
            assert len(set(seen)) == len(seen) == 4 * epoch


def test_the_mixture_is_the_same_whenever_and_by_whomever_it_is_asked():
    weights = (0.7, 0.2, 0.1)
    straight = MixtureSampler(SIZES, weights, 4, seed=1)
    expected = [straight.batch(step) for step in range(60)]
    revived = pickle.loads(pickle.dumps(straight))
    for step in np.random.default_rng(0).permutation(60).tolist():
        assert revived.batch(step) == expected[step]
        fresh = MixtureSampler(SIZES, weights, 4, seed=1)
        assert [fresh.batch(step, range(slot, slot + 1))[0] for slot in range(4)] == expected[step]
    assert [MixtureSampler(SIZES, weights, 4, seed=2).batch(step) for step in range(60)] != expected


def test_no_slots_are_no_samples():
    for order in (MixtureSampler([[9, 4], [7]], (2, 1), 4, 0), DeterministicSampler([9, 4], 4, 0)):
        assert order.batch(3, range(2, 2)) == []
        assert [*order.batch(3, range(1)), *order.batch(3, range(1, 4))] == order.batch(3)


def test_every_place_of_a_mixture_has_a_seed_of_its_own():
    mixture = MixtureSampler(SIZES, (1, 1, 1), 4, seed=0)
    seeds = [place.seed for step in range(300) for place in mixture.batch(step)]
    assert len(set(seeds)) == len(seeds)


@given(
    weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=4),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 10**12),
)
@settings(max_examples=40, deadline=None)
def test_a_mixture_has_an_answer_anywhere(weights, batch_size, seed, step):
    sizes = [[5, 3], [4], [2, 0, 9], [8]][: len(weights)]
    mixture = MixtureSampler(sizes, weights, batch_size, seed)
    flat = [size for part in sizes for size in part]
    for place in mixture.batch(step):
        assert 0 <= place.sample < flat[place.shard]
        assert 0 <= place.seed < 2**63
    counts = block_counts(weights)
    shares = np.asarray(weights) / sum(weights)
    assert np.abs(np.asarray(counts) / sum(counts) - shares).max() <= 1e-3


def test_a_source_smaller_than_the_batch_is_named():
    with pytest.raises(InputError, match=r"--data.train 2 has 3 samples, fewer than --batch-size 4"):
        MixtureSampler([[8], [3]], (1, 1), 4, 0)


@pytest.fixture
def two(shards, tmp_path):
    """A config with two sources: ten images, and four others."""
    draw_shards(tmp_path / "more", range(200, 204), samples_per_shard=4)
    return lambda **changes: (
        tiny_config(shards, tmp_path, train=(str(shards / "train"), str(tmp_path / "more")), **changes).data
    )


def test_sources_without_weights_are_joined(two, shards, tmp_path):
    reader, order = open_training_data(two(), 2, 0)
    parts = [ShardReader(shards / "train"), ShardReader(tmp_path / "more")]
    assert isinstance(reader, JoinedShards)
    assert isinstance(order, DeterministicSampler)
    assert len(reader) == 14
    assert reader.keys() == parts[0].keys() + parts[1].keys()
    assert reader.lineage == parts[0].lineage + parts[1].lineage
    keys = [reader.read(place.shard, place.sample).key for step in range(7) for place in order.batch(step)]
    assert sorted(keys) == sorted(reader.keys())
    assert reader.describe(4, 1) == parts[1].describe(0, 1)


def test_other_sources_or_another_order_of_them_have_another_fingerprint(two, shards):
    names = two().train
    one, other, alone = (
        open_training_data(replace(two(), train=train), 2, 0)[0] for train in (names, names[::-1], names[:1])
    )
    assert len({one.fingerprint, other.fingerprint, alone.fingerprint}) == 3
    assert alone.fingerprint == ShardReader(shards / "train").fingerprint


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("num_processes", "workers"), [(1, 0), (2, 1), (4, 3)])
def test_batches_of_a_mixture_are_the_same_however_they_are_made(two, num_processes, workers):
    config = two(weights=(0.8, 0.2), workers=workers)
    reader, order = open_training_data(config, 4, 7)
    expected = list(islice(training_batches(reader, order, two(), 3, 0, 1), 4))
    shares = []
    for rank in range(num_processes):
        batches = training_batches(reader, order, config, 3, rank, num_processes)
        shares.append(list(islice(batches, 4)))
        batches.close()
    for step, whole in enumerate(expected):
        assert tuple(key for share in shares for key in share[step].keys) == whole.keys
        assert torch.equal(torch.cat([share[step].images for share in shares]), whole.images)
    more = sum(
        key >= "cell-200" for batch in islice(training_batches(reader, order, two(), 0, 0, 1), 10) for key in batch.keys
    )
    assert more == 8  # of 40: two blocks of five steps in each of four slots, with one each


def test_without_validation_data_there_is_no_reader(two):
    assert open_validation_data(two(val=None)) is None
    assert len(open_validation_data(two())) == 3


def test_a_cache_at_a_url_is_refused(shards, tmp_path):
    config = tiny_config(shards, tmp_path, cache=Path("s3://bucket/cache")).data
    with pytest.raises(InputError, match=r"--data.cache s3:/bucket/cache: is a URL"):
        open_training_data(config, 2, 0)


def test_sources_may_have_samples_of_equal_keys(tmp_path):
    """Each is its own: the same key stands for another image in another source."""
    parts = [
        ShardReader(draw_shards(tmp_path / name, range(4), 2, width=width)) for name, width in (("a", 40), ("b", 56))
    ]
    joined = JoinedShards(parts)
    assert joined.keys() == parts[0].keys() * 2
    assert [joined.read(shard, 1).image.shape[1] for shard in range(4)] == [40, 40, 56, 56]
    assert str(tmp_path / "b") in joined.describe(3, 0)
