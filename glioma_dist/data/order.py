"""Which sample stands in which slot of which batch: a pure function, the same on every process.

It depends on the seed, the epoch, the global batch size and the shards' sizes, and on nothing else: not on the number
of processes or workers, nor on when it is asked. Hence a run goes on exactly where it stopped, on any number of
processes that divides the batch.

An epoch's sequence: the shards in a random order, cut into windows of a few shards, the samples of each window in a
random order. Slot j of a batch walks its own contiguous stretch of that sequence, so that a process reads few shards.
Memory grows with the number of shards, never with the number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from glioma_dist.errors import InputError

SHARDS_IN_WINDOW = 16
_SHARDS, _WINDOW, _SAMPLE = 0, 1, 2
"""What a draw is for, as part of its seed, so that no two draws share a stream."""


@dataclass(frozen=True)
class Place:
    """One sample's place in the order."""

    shard: int
    """Number of the shard, as the index lists them."""
    sample: int
    """Number of the sample within its shard."""
    seed: int
    """For all that is random about this sample at this place: augmentation, stochastic depth. 63 bits."""


class Order:
    """The order of all batches of a run.

    A batch takes `batch_size` samples; the rest of an epoch that fills no batch is left out, other samples each
    epoch. Raises InputError where the samples do not fill one batch.
    """

    def __init__(self, shard_sizes: Sequence[int], batch_size: int, seed: int) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        num_samples = int(self.shard_sizes.sum())
        self.steps_per_epoch = num_samples // batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"the training data has {num_samples} samples, fewer than --batch-size {batch_size}: "
                f"give a batch of at most {num_samples}"
            )
        # A process asks for the same few windows over and over: one a slot, for neighbouring steps.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._window = lru_cache(maxsize=2 * batch_size + 2)(self._draw_window)

    def batch(self, step: int, slots: range | None = None) -> list[Place]:
        """The samples of batch number `step`, counted from 0 over all epochs; of `slots` only, if given."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return [self._place(epoch, step_in_epoch, slot) for slot in (slots or range(self.batch_size))]

    def _place(self, epoch: int, step_in_epoch: int, slot: int) -> Place:
        position = slot * self.steps_per_epoch + step_in_epoch
        _, window_ends = self._epoch(epoch)
        window = int(np.searchsorted(window_ends, position, side="right"))
        shards, samples = self._window(epoch, window)
        within = position - (int(window_ends[window - 1]) if window else 0)
        seed = self._generator(_SAMPLE, epoch, step_in_epoch, slot).integers(2**63)
        return Place(int(shards[within]), int(samples[within]), int(seed))

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards' order, and the position in the sequence at which each window ends."""
        shards = self._generator(_SHARDS, epoch).permutation(len(self.shard_sizes))
        ends = np.cumsum(self.shard_sizes[shards])
        last = np.arange(SHARDS_IN_WINDOW, len(shards) + SHARDS_IN_WINDOW, SHARDS_IN_WINDOW).clip(max=len(shards)) - 1
        return shards, ends[last]

    def _draw_window(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Shard and sample number of each position of a window."""
        shards = self._epoch(epoch)[0][window * SHARDS_IN_WINDOW : (window + 1) * SHARDS_IN_WINDOW]
        sizes = self.shard_sizes[shards]
        order = self._generator(_WINDOW, epoch, window).permutation(int(sizes.sum()))
        starts = np.cumsum(sizes) - sizes
        which = np.searchsorted(starts + sizes, order, side="right")
        return shards[which], order - starts[which]

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose])

    def __reduce__(self) -> tuple:
        return Order, (self.shard_sizes, self.batch_size, self.seed)
