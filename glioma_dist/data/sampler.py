"""Which sample stands in which slot of which batch: a pure function, the same on every process.

It depends on the seed, the epoch, the global batch size and the shards' sizes, and on nothing else: not on the number
of processes or workers, nor on when it is asked. Hence a run resumes exactly where it stopped, on any number of
processes that divides the batch.

An epoch's sequence: the shards in a random order, cut into windows of a few shards, the samples of each window in a
random order. Slot j of a batch walks its own contiguous stretch of that sequence, so that a process reads few shards.
Memory grows with the number of shards, never with the number of samples.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from glioma_dist.errors import InputError
from glioma_dist.limits import check_batch_size, check_seed
from glioma_dist.wording import counted

SHARDS_IN_WINDOW = 16
LARGEST_DRAWN = 2**16
"""Samples of a window up to which its order is drawn and kept; that of a larger one is computed, a place at a time."""
NETWORK_ROUNDS = 8
_SHARDS, _WINDOW, _SAMPLE = 0, 1, 2
"""What a draw is for, as part of its seed, so that no two draws share a stream."""


@dataclass(frozen=True)
class SampleRef:
    """One sample's place in the order."""

    shard: int
    """Number of the shard, as the index lists them."""
    sample: int
    """Number of the sample within its shard."""
    seed: int
    """For all that is random about this sample at this place: augmentation, stochastic depth. 63 bits."""


class DeterministicSampler:
    """The order of all batches of a run.

    A batch takes `batch_size` samples; the rest of an epoch that fills no batch is left out, other samples each
    epoch. Raises InputError where the samples do not fill one batch, a batch has no sample, or the seed is none from 0
    to 2^63 - 1; `named` says whose samples they are.
    """

    def __init__(
        self, shard_sizes: Sequence[int], batch_size: int, seed: int, named: str = "the training data"
    ) -> None:
        check_seed("seed", seed)
        check_batch_size(batch_size)
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        num_samples = int(self.shard_sizes.sum())
        self.steps_per_epoch = num_samples // batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{named} has {counted(num_samples, 'sample')}, fewer than --batch-size {batch_size}: "
                f"give a batch of at most {num_samples}"
            )
        # A process asks for the same few windows over and over: one a slot, for neighbouring steps.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._window = lru_cache(maxsize=2 * batch_size + 2)(self._draw_window)

    def batch(self, step: int, slots: range | None = None) -> list[SampleRef]:
        """The samples of batch number `step`, counted from 0 over all epochs; of `slots` only, if given."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        wanted = range(self.batch_size) if slots is None else slots
        return [self._place(epoch, step_in_epoch, slot) for slot in wanted]

    def _place(self, epoch: int, step_in_epoch: int, slot: int) -> SampleRef:
        position = slot * self.steps_per_epoch + step_in_epoch
        _, window_ends = self._epoch(epoch)
        window = int(np.searchsorted(window_ends, position, side="right"))
        within = position - (int(window_ends[window - 1]) if window else 0)
        shard, sample = self._window(epoch, window).locate(within)
        seed = self._generator(_SAMPLE, epoch, step_in_epoch, slot).integers(2**63)
        return SampleRef(shard, sample, int(seed))

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards' order, and the position in the sequence at which each window ends."""
        shards = self._generator(_SHARDS, epoch).permutation(len(self.shard_sizes))
        ends = np.cumsum(self.shard_sizes[shards])
        last = np.arange(SHARDS_IN_WINDOW, len(shards) + SHARDS_IN_WINDOW, SHARDS_IN_WINDOW).clip(max=len(shards)) - 1
        return shards, ends[last]

    def _draw_window(self, epoch: int, window: int) -> Window:
        shards = self._epoch(epoch)[0][window * SHARDS_IN_WINDOW : (window + 1) * SHARDS_IN_WINDOW]
        return Window(shards.tolist(), self.shard_sizes[shards], self._generator(_WINDOW, epoch, window))

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose])

    def __reduce__(self) -> tuple:
        return DeterministicSampler, (self.shard_sizes, self.batch_size, self.seed)


class Window:
    """A few shards and the order of their samples, drawn from `generator`. sizes: (shards,) samples of each.

    It holds at most LARGEST_DRAWN numbers. The order of more samples is a Feistel network over the least power of 4
    that is not less than their number, applied again until it hits one of them (Black and Rogaway 2002, Ciphers with
    arbitrary finite domains, sections 4 and 5).
    """

    def __init__(self, shards: list[int], sizes: np.ndarray, generator: np.random.Generator) -> None:
        self._shards, self._ends = shards, np.cumsum(sizes).tolist()
        self._num_samples = self._ends[-1]
        self._drawn, self._keys = None, []
        if self._num_samples <= LARGEST_DRAWN:
            self._drawn = generator.permutation(self._num_samples).astype(np.uint32)
        else:
            self._keys = generator.integers(2**32, size=NETWORK_ROUNDS).tolist()
            self._half_bits = ((self._num_samples - 1).bit_length() + 1) // 2

    def locate(self, position: int) -> tuple[int, int]:
        """Shard, and sample within it, that stand at a position of the window."""
        number = int(self._drawn[position]) if self._drawn is not None else self._permute(position)
        which = bisect_right(self._ends, number)
        return self._shards[which], number - (self._ends[which - 1] if which else 0)

    def _permute(self, number: int) -> int:
        bits, low = self._half_bits, (1 << self._half_bits) - 1
        while True:
            left, right = number >> bits, number & low
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) & low)
            number = left << bits | right
            if number < self._num_samples:
                return number


def _mix(number: int) -> int:
    """32 bits that all depend on all of `number`'s, 32 bits too: MurmurHash3's finaliser (Appleby 2011)."""
    number = (number ^ number >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    number = (number ^ number >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return number ^ number >> 16
