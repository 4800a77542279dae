"""The order of samples: what an epoch holds, and that nothing but seed, sizes and batch decides it."""

import pickle
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glioma_dist as gd
from glioma_dist.data.mixture import MixtureSampler
from glioma_dist.data.sampler import LARGEST_DRAWN, SHARDS_IN_WINDOW, DeterministicSampler, SampleRef, Window
from glioma_dist.errors import InputError

SIZES = {
    "one shard": [7],
    "empty and unequal": [0, 3, 0, 5, 1, 0],
    "a shard of one each": [1] * 37,
    "more than a window": [5, 9, 2, 4] * 12,
    "just a window": [3] * SHARDS_IN_WINDOW,
    "one more than a window": [3] * (SHARDS_IN_WINDOW + 1),
    "a window of empty shards": [4, 4] + [0] * 40 + [4],
}

EARLIER = [(16, 4, 5839117196032552764), (37, 0, 7981404644215928719), (13, 3, 7889151744344454164)]


def epoch_of(order: DeterministicSampler, epoch: int) -> list[list[SampleRef]]:
    first = epoch * order.steps_per_epoch
    return [order.batch(first + step) for step in range(order.steps_per_epoch)]


def samples(batches: list[list[SampleRef]]) -> list[tuple[int, int]]:
    return [(place.shard, place.sample) for batch in batches for place in batch]


def every_sample(sizes: list[int]) -> set[tuple[int, int]]:
    return {(shard, sample) for shard, size in enumerate(sizes) for sample in range(size)}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_an_epoch_holds_every_sample_at_most_once(sizes, batch_size):
    order = DeterministicSampler(sizes, batch_size, seed=3)
    for epoch in range(3):
        seen = samples(epoch_of(order, epoch))
        assert len(seen) == len(set(seen)) == sum(sizes) // batch_size * batch_size
        assert set(seen) <= every_sample(sizes)
        if sum(sizes) % batch_size == 0:
            assert set(seen) == every_sample(sizes)


def test_what_an_epoch_leaves_out_is_not_always_the_same():
    order = DeterministicSampler([4, 5, 2], 4, seed=0)
    left_out = [frozenset(every_sample([4, 5, 2]) - set(samples(epoch_of(order, epoch)))) for epoch in range(20)]
    assert {len(left) for left in left_out} == {3}
    assert len(frozenset.union(*left_out)) == 11


def test_the_order_is_the_same_whenever_it_is_asked():
    sizes = SIZES["more than a window"]
    straight = DeterministicSampler(sizes, 6, seed=9)
    expected = [straight.batch(step) for step in range(3 * straight.steps_per_epoch)]
    steps = np.random.default_rng(0).permutation(len(expected)).tolist()
    asked, revived = DeterministicSampler(sizes, 6, seed=9), pickle.loads(pickle.dumps(straight))
    for step in steps:
        assert asked.batch(step) == expected[step]
        assert DeterministicSampler(sizes, 6, seed=9).batch(step) == expected[step]
    assert [revived.batch(step) for step in range(len(expected))] == expected


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_the_order_does_not_know_the_number_of_processes(num_processes):
    sizes, share = SIZES["more than a window"], 8 // num_processes
    whole = DeterministicSampler(sizes, 8, seed=1)
    ranks = [DeterministicSampler(sizes, 8, seed=1) for _ in range(num_processes)]
    for step in range(2 * whole.steps_per_epoch):
        joined = [
            place
            for rank, order in enumerate(ranks)
            for place in order.batch(step, range(rank * share, (rank + 1) * share))
        ]
        assert joined == whole.batch(step)


def test_epochs_and_seeds_differ():
    sizes = SIZES["more than a window"]
    orders = [
        samples(epoch_of(DeterministicSampler(sizes, 4, seed), epoch)) for seed in (0, 1, 2**62) for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9


def test_every_place_has_a_seed_of_its_own():
    orders = [DeterministicSampler([20, 20], 4, seed) for seed in (0, 1)]
    seeds = [
        place.seed for order in orders for epoch in range(10) for batch in epoch_of(order, epoch) for place in batch
    ]
    assert len(set(seeds)) == len(seeds) == 800
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    # 63 bits drawn evenly: the mean of 800 lies within five deviations of the middle.
    assert abs(np.mean(seeds) / 2**62 - 1) < 5 * np.sqrt(4 / 12 / 800)


@pytest.mark.parametrize(
    "take",
    [
        lambda seed: gd.build_model(gd.ModelConfig(encoder="mit_tiny"), seed),
        lambda seed: gd.DeterministicSampler([4], 2, seed),
        lambda seed: MixtureSampler([[4], [4]], [1, 1], 2, seed),
    ],
)
def test_a_seed_that_is_none_is_refused_wherever_one_is_taken(take):
    for seed in (-1, 2**63, 2**64, 10**5000, 1.5, "1", None, True):
        with pytest.raises(InputError, match=r"seed .*: give a whole number from 0 to 2\^63 - 1"):
            take(seed)


@pytest.mark.parametrize(
    "take",
    [
        lambda batch_size: gd.DeterministicSampler([4], batch_size, 0),
        lambda batch_size: MixtureSampler([[4], [4]], [1, 1], batch_size, 0),
        lambda batch_size: gd.TrainConfig(data=gd.DataConfig(train=("x",)), batch_size=batch_size).validate(),
    ],
)
def test_a_batch_without_samples_is_refused(take):
    """Of -1 samples it was an empty list, of an order with -4 steps in an epoch."""
    for batch_size in (0, -1, 2.5, True, "4", None, 2**21):
        with pytest.raises(InputError, match=r"--batch-size .*: give (1 or more|a whole number|at most 1048576)"):
            take(batch_size)


def test_the_seed_is_the_places_and_not_the_samples():
    """A sample meets other randomness in another epoch."""
    order = DeterministicSampler([6], 2, seed=0)
    seeds = {}
    for epoch in range(5):
        for batch in epoch_of(order, epoch):
            for place in batch:
                seeds.setdefault(place.sample, []).append(place.seed)
    assert all(len(set(drawn)) == 5 for drawn in seeds.values())


def test_a_slot_walks_its_own_stretch_and_reads_few_shards():
    sizes, batch_size = [10] * 200, 8
    order = DeterministicSampler(sizes, batch_size, seed=5)
    batches = epoch_of(order, 0)
    stretches = [[batch[slot] for batch in batches] for slot in range(batch_size)]
    sequence = [place for stretch in stretches for place in stretch]
    assert len({(place.shard, place.sample) for place in sequence}) == 2000
    # Each window of the joined sequence holds whole shards, and these in no other window.
    window = 10 * SHARDS_IN_WINDOW
    windows = [{place.shard for place in sequence[first : first + window]} for first in range(0, 2000, window)]
    assert [len(shards) for shards in windows] == [SHARDS_IN_WINDOW] * 12 + [200 - 12 * SHARDS_IN_WINDOW]
    assert len(set().union(*windows)) == 200
    # 250 samples in a row touch three windows at most, of 200 shards that a walk at random would nearly all touch.
    assert max(len({place.shard for place in stretch}) for stretch in stretches) <= 3 * SHARDS_IN_WINDOW
    assert len({place.shard for place in sequence[: window // 4]}) > 4  # and samples are mixed within a window


def test_samples_are_drawn_evenly():
    """Over many seeds each of 12 samples comes first about as often: chi-square with 11 degrees of freedom, whose
    99.99th percentile is 37.4."""
    sizes = [1, 0, 4, 7]
    counts = np.zeros(12)
    starts = np.cumsum(sizes) - sizes
    for seed in range(1200):
        place = DeterministicSampler(sizes, 3, seed).batch(0)[0]
        counts[starts[place.shard] + place.sample] += 1
    assert ((counts - 100) ** 2 / 100).sum() < 37.4


@pytest.mark.parametrize(("sizes", "batch_size"), [([], 1), ([0, 0], 1), ([3, 2], 6)])
def test_fewer_samples_than_the_batch_are_refused(sizes, batch_size):
    with pytest.raises(InputError, match=rf"{sum(sizes)} samples.*--batch-size {batch_size}"):
        DeterministicSampler(sizes, batch_size, seed=0)


@pytest.mark.parametrize("num_samples", [LARGEST_DRAWN + 1, 2**17, 100_003])
def test_a_large_windows_order_holds_each_sample_once_and_mixes(num_samples):
    sizes = [num_samples // 5, 0, num_samples - num_samples // 5]
    window = Window([7, 8, 9], np.asarray(sizes), np.random.default_rng(0))
    found = np.array([window.locate(position) for position in range(num_samples)])
    assert set(found[:, 0].tolist()) == {7, 9}
    number = found[:, 1] + np.where(found[:, 0] == 9, sizes[0], 0)
    assert np.array_equal(np.sort(number), np.arange(num_samples))
    # Of a random order neighbours are as far apart as any two, a third of all; few stay, and none leads to the next.
    assert abs(np.abs(np.diff(number)).mean() / num_samples - 1 / 3) < 0.01
    assert (np.diff(number) == 1).sum() < 12
    assert abs(np.corrcoef(number, np.arange(num_samples))[0, 1]) < 0.02
    other = Window([7, 8, 9], np.asarray(sizes), np.random.default_rng(1))
    assert sum(window.locate(position) == other.locate(position) for position in range(1000)) < 5


def test_memory_grows_with_shards_and_never_with_samples():
    """A hundred billion samples in ten shards: some kilobytes, however many places are asked for."""
    order = DeterministicSampler([10**10] * 10, 8, seed=0)
    tracemalloc.start()
    steps = np.random.default_rng(0).integers(order.steps_per_epoch, size=50).tolist()
    seen = {(place.shard, place.sample) for step in steps for place in order.batch(step)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(seen) == 400
    assert peak < 2**20


def test_a_billion_samples_in_a_hundred_thousand_shards_cost_megabytes_and_no_time():
    """benchmarks/sampler_cost.py has the figures, tens of microseconds a sample; the bound is for a busy machine."""
    tracemalloc.start()
    order = DeterministicSampler([10**4] * 10**5, 256, seed=0)
    order.batch(0)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 8 * 2**20
    start = time.process_time()
    for step in range(100):
        order.batch(10**5 * step, range(4))
    assert time.process_time() - start < 2


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(lambda sizes: sum(sizes) >= 4),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_epoch_of_any_shards_holds_every_sample_at_most_once(sizes, batch_size, seed, epoch):
    order = DeterministicSampler(sizes, batch_size, seed)
    seen = samples(epoch_of(order, epoch))
    assert len(set(seen)) == len(seen) == sum(sizes) // batch_size * batch_size
    assert set(seen) <= every_sample(sizes)
    step = epoch * order.steps_per_epoch
    joined = [
        place
        for slot in range(batch_size)
        for place in DeterministicSampler(sizes, batch_size, seed).batch(step, range(slot, slot + 1))
    ]
    assert joined == order.batch(step)


def test_the_order_of_earlier_versions_still_holds():
    """A run may be resumed by a newer version: these places were drawn when the order was first written."""
    order = DeterministicSampler([5, 9, 2, 4] * 12, 6, seed=9)
    found = [(place.shard, place.sample, place.seed) for place in order.batch(100)[:3]]
    assert found == EARLIER
