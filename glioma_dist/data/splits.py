"""Random splits of a data set that has none of its own."""

from collections.abc import Iterable, Mapping

import numpy as np

from glioma_dist.errors import InputError

SPLIT_NAMES = ("train", "val", "test")
WHOLE = "all"
"""The folder of a data set that is not divided."""


def draw_splits(keys: Iterable[str], counts: Mapping[str, int], seed: int) -> dict[str, list[str]]:
    """Draw disjoint splits at random: for each name in `counts` that many keys, sorted.

    The same keys, counts and seed give the same splits, whatever the keys' order; keys beyond the counts stay
    out.
    Raises InputError where a count is below 1, the seed is negative, or more is asked for than there is.
    """
    keys = sorted(set(keys))
    if min(counts.values()) < 1 or seed < 0:
        raise InputError(f"splits {dict(counts)} with seed {seed}: each needs a sample, and the seed is 0 or more")
    wanted = sum(counts.values())
    if wanted > len(keys):
        raise InputError(f"splits {dict(counts)} need {wanted} samples, there are {len(keys)}; lower the counts")
    shuffled = np.random.default_rng(seed).permutation(len(keys))
    splits, start = {}, 0
    for name, count in counts.items():
        splits[name] = sorted(keys[place] for place in shuffled[start : start + count])
        start += count
    return splits
