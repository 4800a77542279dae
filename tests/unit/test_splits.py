"""Random splits."""

import numpy as np
import pytest

from glioma_dist.data.splits import draw_splits
from glioma_dist.errors import InputError

KEYS = [f"field{number:02d}" for number in range(30)]
ARTICLE = {"train": 15, "val": 5, "test": 10}


def test_splits_are_disjoint_and_of_the_asked_sizes():
    splits = draw_splits(KEYS, ARTICLE, seed=0)
    assert {name: len(keys) for name, keys in splits.items()} == ARTICLE
    assert sorted(key for keys in splits.values() for key in keys) == KEYS


def test_neither_order_nor_the_global_generator_matters():
    np.random.seed(1)
    first = draw_splits(KEYS, ARTICLE, seed=3)
    np.random.seed(2)
    assert draw_splits(KEYS[::-1] + KEYS[:4], ARTICLE, seed=3) == first
    assert draw_splits(KEYS, ARTICLE, seed=4) != first


def test_every_sample_gets_everywhere():
    times = dict.fromkeys(KEYS, 0)
    for seed in range(400):
        for key in draw_splits(KEYS, ARTICLE, seed)["val"]:
            times[key] += 1
    # 400 draws of 5 in 30: 66.7 each, standard deviation 7.5.
    assert min(times.values()) > 66.7 - 4 * 7.5
    assert max(times.values()) < 66.7 + 4 * 7.5


@pytest.mark.parametrize(
    ("counts", "seed", "words"),
    [
        ({"train": 15, "val": 5, "test": 11}, 0, "31 samples, there are 30"),
        ({"a": 0}, 0, "needs"),
        ({"a": 1}, -1, "seed"),
    ],
)
def test_what_cannot_be_drawn_is_refused(counts, seed, words):
    with pytest.raises(InputError, match=words):
        draw_splits(KEYS, counts, seed)
