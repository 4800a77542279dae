"""Data without a cell, or with hardly anything else: a network that has learned from them finds none anywhere, or one
everywhere, and scores well on more of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from glioma_dist.data.sample import cells_of
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError, RunError
from glioma_dist.limits import IGNORE
from glioma_dist.wording import counted, short

MOST_SAMPLES = 64
"""Looked at in each set where none has a cell. Where one image in twenty has cells, 64 have none with 4 %."""
LEAST_COVERAGE, MOST_COVERAGE = 0.002, 0.98
"""Mean share of cells in masks: fewer, or more, is worth a warning."""
MOST_READ = 4
"""Samples of each set at a URL that are read for it."""


def coverage(mask: np.ndarray) -> float:
    """Return the share of a mask's labelled pixels that belong to cells: from 0 to 1, 0 where none is labelled."""
    known = mask != IGNORE
    return float(np.count_nonzero(mask[known]) / max(1, np.count_nonzero(known)))


def note_on_coverage(shares: Sequence[float], readers: Sequence[ShardReader]) -> str | None:
    """Return a line where the masks of training images are nearly all background, or nearly all cell; None elsewhere.

    shares: `coverage` of some of them, evenly spread. If there is none, as of sets at URLs, a few are read here.
    """
    shares = shares or list(_read_shares(readers))
    mean = sum(shares) / max(1, len(shares))
    if not shares or LEAST_COVERAGE <= mean <= MOST_COVERAGE:
        return None
    what = "hardly any pixel" if mean < LEAST_COVERAGE else "nearly every pixel"
    sources = ", ".join(str(reader.source) for reader in readers)
    return (
        f"--data.train {sources}: {what} of the masks is cell ({short(100 * mean)} % in "
        f"{counted(len(shares), 'sample')}), so a network can score well without learning what a cell is; are the "
        "masks inverted, or cells not labelled? "
        f"glioma-dist shards inspect {readers[0].source} --sheet sheet.png draws some"
    )


def _read_shares(readers: Sequence[ShardReader]) -> Iterator[float]:
    for reader in readers:
        for shard, place in _spread(reader, MOST_READ):
            with suppress(RunError):
                yield coverage(reader.read(shard, place).mask)


def check_cells(readers: Sequence[ShardReader], flag: str, is_needed: bool) -> str | None:
    """Look whether any mask of some sets, taken together, has a cell. Usually one sample is read.

    Returns None where one has, otherwise a note for the screen. Raises InputError where cells are needed, to train on,
    and every sample was looked at. A sample that cannot be read is left to whoever needs it.
    """
    num_looked = 0
    for reader in readers:
        for shard, place in _spread(reader):
            try:
                if cells_of(reader.read(shard, place, with_instances=False).mask).any():
                    return None
            except InputError:
                return None
            num_looked += 1
    total = sum(map(len, readers))
    sources = ", ".join(str(reader.source) for reader in readers)
    of_all = f" of {total}" if num_looked < total else ""
    what = f"{flag} {sources}: no mask of {counted(num_looked, 'sample')}{of_all} has a cell"
    if is_needed and num_looked == total:
        raise InputError(
            f"{what}, so there is nothing to learn; check that the masks belong to these images and that the "
            "converted categories are cells"
        )
    return f"{what}; glioma-dist shards inspect {readers[0].source} --sheet sheet.png draws some of them"


def _spread(reader: ShardReader, most: int = MOST_SAMPLES) -> Iterator[tuple[int, int]]:
    """Shard and place of at most `most` samples, evenly over the set."""
    total = len(reader)
    count = min(total, most)
    shard, first = 0, 0
    for number in range(count):
        position = number * total // count
        while position >= first + reader.shard_sizes[shard]:
            first += reader.shard_sizes[shard]
            shard += 1
        yield shard, position - first
