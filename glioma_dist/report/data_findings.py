"""What a data report says of images that are alike: in one split, in two, in one group or in several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glioma_dist.data.near_duplicates import NearDuplicate, Sketch, find_near_duplicates
from glioma_dist.report.data_samples import ReportedSample

MAX_COMPARED = 20_000
"""Images, evenly spread, among which near-duplicates are looked for: 20 KiB of memory each."""
Kind = Literal["leak", "repeated", "expected"]
WORDS = {
    "leak": "in two splits",
    "repeated": "twice in one split",
    "expected": "one group of one split",
}


@dataclass(frozen=True)
class Pair:
    """Two images that are alike, by their places among the samples.

    similarity: 1 where all pixels are equal. kind: a leak, if they are in different splits; expected, if they are of
    one group in one split, as the images of a time series; else repeated.
    """

    first: int
    second: int
    similarity: float
    is_exact: bool
    kind: Kind


@dataclass(frozen=True)
class Alike:
    """All that is alike. pairs: leaks first, then the most alike."""

    pairs: list[Pair]
    shared_groups: dict[tuple[str, str], dict[int, int]]
    """Data set and group -> its number of images in each split, for groups of several splits."""
    num_compared: int
    """Images among which near-duplicates were looked for."""
    num_omitted: int
    """Pairs that were not looked at in detail, because there were too many."""


def find_alike(samples: Sequence[ReportedSample], sketches: Sequence[Sketch]) -> Alike:
    """Find images and groups that are there more than once."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        same[sample.digest].append(place)
    pairs = [
        _pair(samples, places[0], other, 1.0, True)
        for places in same.values()
        if len(places) > 1
        for other in _others(samples, places)
    ]
    # One of several that are equal is enough to compare with others.
    single = [places[0] for places in same.values()]
    compared = single[:: -(-len(single) // MAX_COMPARED)] if single else []
    near, num_omitted = find_near_duplicates(
        [sketches[place] for place in compared], [samples[place].at.split for place in compared]
    )
    pairs += [_near_pair(samples, compared, each) for each in near]
    order = ("leak", "repeated", "expected")
    pairs.sort(key=lambda pair: (order.index(pair.kind), -pair.similarity, pair.first, pair.second))
    return Alike(pairs, shared_groups(samples), len(compared), num_omitted)


def _others(samples: Sequence[ReportedSample], places: Sequence[int]) -> list[int]:
    """Of equal images, those that are shown beside the first: those of other splits first."""
    return sorted(places[1:], key=lambda place: samples[place].at.split == samples[places[0]].at.split)


def _near_pair(samples: Sequence[ReportedSample], compared: Sequence[int], near: NearDuplicate) -> Pair:
    return _pair(samples, compared[near.first], compared[near.second], near.similarity, False)


def _pair(samples: Sequence[ReportedSample], first: int, second: int, similarity: float, is_exact: bool) -> Pair:
    one, other = samples[first], samples[second]
    kind: Kind = "repeated"
    if one.at.split != other.at.split:
        kind = "leak"
    elif not is_exact and one.group and (one.dataset, one.group) == (other.dataset, other.group):
        kind = "expected"
    return Pair(first, second, similarity, is_exact, kind)


def shared_groups(samples: Sequence[ReportedSample]) -> dict[tuple[str, str], dict[int, int]]:
    """Return the groups whose images are in several splits, with their numbers."""
    found: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for sample in samples:
        if sample.group:
            counts = found[sample.dataset, sample.group]
            counts[sample.at.split] = counts.get(sample.at.split, 0) + 1
    return {name: counts for name, counts in sorted(found.items()) if len(counts) > 1}
