"""Several folders of shards as one: joined, or drawn from by weight."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, chain

import numpy as np

from glioma_dist.config import DataConfig
from glioma_dist.data.images.grey_png import RowChoice
from glioma_dist.data.sample import Sample
from glioma_dist.data.sampler import DeterministicSampler, SampleRef
from glioma_dist.data.shards.cache import ShardCache
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.urls import was_url
from glioma_dist.errors import InputError, one_line
from glioma_dist.limits import check_batch_size, check_seed

LONGEST_BLOCK = 1000
_SOURCE, _BLOCK = 3, 4
"""What a draw is for, as part of its seed, beside those of `order`."""


class JoinedShards:
    """The shards of several readers, one behind the other; it reads like one of them."""

    def __init__(self, parts: Sequence[ShardReader]) -> None:
        self.parts = tuple(parts)
        self.shard_sizes = [size for part in parts for size in part.shard_sizes]
        self.lineage = [entry for part in parts for entry in part.lineage]
        self.fingerprint = hashlib.sha256("\n".join(part.fingerprint for part in parts).encode()).hexdigest()
        self.classes = common_classes(self.parts)
        self.has_instances = all(part.has_instances for part in parts)
        self.has_ignore = any(part.has_ignore for part in parts)
        self._ends = list(accumulate(len(part.shard_sizes) for part in parts))

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def keys(self) -> list[str]:
        """The keys of all samples; those of different parts may be alike."""
        return list(chain.from_iterable(part.keys() for part in self.parts))

    def describe(self, shard: int, place: int) -> str:
        """See `ShardReader.describe`."""
        part, shard = self._part(shard)
        return part.describe(shard, place)

    def read(self, shard: int, place: int, with_instances: bool = True, choose_rows: RowChoice | None = None) -> Sample:
        """See `ShardReader.read`; the shards are numbered through."""
        part, shard = self._part(shard)
        return part.read(shard, place, with_instances, choose_rows)

    def _part(self, shard: int) -> tuple[ShardReader, int]:
        which = bisect_right(self._ends, shard)
        return self.parts[which], shard - (self._ends[which - 1] if which else 0)


def common_classes(parts: Sequence[ShardReader]) -> tuple[str, ...]:
    """The classes of all parts. Raises InputError where they differ, also in their order."""
    first = parts[0]
    for part in parts[1:]:
        if part.classes != first.classes:
            told = " and ".join(f"{each.source} has {', '.join(each.classes) or 'one class'}" for each in (first, part))
            raise InputError(one_line(f"{told}; convert both with the same --classes in the same order"))
    return first.classes


Shards = ShardReader | JoinedShards


def parts_of(shards: Shards) -> tuple[ShardReader, ...]:
    """The readers that `shards` is made of."""
    return shards.parts if isinstance(shards, JoinedShards) else (shards,)


class MixtureSampler:
    """The order of all batches of a run that draws from several sources by weight: as pure as `DeterministicSampler`.

    Each slot takes its samples in blocks of steps; in every block each source has its exact share, the steps in a
    random order. A slot's samples of one source are those that this source's own `DeterministicSampler` has for the
    slot, so each source is gone through evenly, again and again, every sample of it equally often but for its rest.

    sizes: for each source the sizes of its shards. An epoch has as many steps as one over all of them together.
    Raises InputError where a source does not fill one batch, or has less than a thousandth of all draws.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], weights: Sequence[float], batch_size: int, seed: int) -> None:
        check_seed("seed", seed)
        check_batch_size(batch_size)
        self._arguments = (sizes, weights, batch_size, seed)
        self.batch_size = batch_size
        self.steps_per_epoch = sum(map(sum, sizes)) // batch_size
        self._counts = block_counts(weights)
        self._seed = seed
        self._orders = [
            DeterministicSampler(
                part, batch_size, int(self._generator(_SOURCE, number).integers(2**63)), f"--data.train {number + 1}"
            )
            for number, part in enumerate(sizes)
        ]
        self._first_shards = [0, *accumulate(map(len, sizes))]
        self._block = lru_cache(maxsize=2 * batch_size + 2)(self._draw_block)

    def batch(self, step: int, slots: range | None = None) -> list[SampleRef]:
        """See `DeterministicSampler.batch`; the shards are numbered through, as `JoinedShards` has them."""
        return [self._place(step, slot) for slot in (range(self.batch_size) if slots is None else slots)]

    def _place(self, step: int, slot: int) -> SampleRef:
        number, within = divmod(step, sum(self._counts))
        sources, earlier = self._block(slot, number)
        source = int(sources[within])
        step_of_source = number * self._counts[source] + int(earlier[within])
        place = self._orders[source].batch(step_of_source, range(slot, slot + 1))[0]
        return replace(place, shard=place.shard + self._first_shards[source])

    def _draw_block(self, slot: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """For each step of a block: the source, and how many steps before it in the block have the same one."""
        each = np.repeat(np.arange(len(self._counts)), self._counts)
        sources = self._generator(_BLOCK, slot, number).permutation(each)
        earlier = np.empty_like(sources)
        for source, count in enumerate(self._counts):
            earlier[sources == source] = np.arange(count)
        return sources, earlier

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *purpose])

    def __reduce__(self) -> tuple:
        return MixtureSampler, self._arguments


def block_counts(weights: Sequence[float]) -> list[int]:
    """Draws of each source in a block: the shortest block that has the weights exactly, else the nearest of 1000."""
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    if shares.min() * LONGEST_BLOCK < 1:
        raise InputError(
            f"--data.weights {' '.join(map(str, weights))}: the least is below a thousandth of their sum; omit it"
        )
    for length in range(len(shares), LONGEST_BLOCK + 1):
        counts = (shares * length).round()
        if counts.min() >= 1 and np.abs(shares * length - counts).max() < 1e-6:
            return counts.astype(int).tolist()
    # Whole parts first; what is left goes to the largest rests.
    counts = np.floor(shares * LONGEST_BLOCK).astype(int)
    rests = shares * LONGEST_BLOCK - counts
    counts[np.argsort(-rests, kind="stable")[: LONGEST_BLOCK - counts.sum()]] += 1
    return counts.tolist()


def open_training_data(
    config: DataConfig, batch_size: int, seed: int
) -> tuple[Shards, DeterministicSampler | MixtureSampler]:
    """What `config` names to train on, and the order of its samples. Raises InputError where either cannot be."""
    parts = [ShardReader(name, _cache(config)) for name in config.train]
    reader = parts[0] if len(parts) == 1 else JoinedShards(parts)
    if len(parts) > 1 and config.weights:
        return reader, MixtureSampler([part.shard_sizes for part in parts], config.weights, batch_size, seed)
    return reader, DeterministicSampler(reader.shard_sizes, batch_size, seed)


def open_validation_data(config: DataConfig) -> ShardReader | None:
    """What `config` names to validate on; None where it names nothing."""
    return ShardReader(config.val, _cache(config)) if config.val else None


def _cache(config: DataConfig) -> ShardCache | None:
    if config.cache is None:
        return None
    if was_url(config.cache):
        raise InputError(f"--data.cache {config.cache}: is a URL; give a folder on a disk of this machine")
    return ShardCache(config.cache, config.cache_bytes)
