"""Data without a cell: a network that has learned from it finds none anywhere, and scores well on more of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from glioma_dist.data.sample import cells_of
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError

MOST_SAMPLES = 64
"""Looked at in each set where none has a cell. Where one image in twenty has cells, 64 have none with 4 %."""


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
    what = f"{flag} {sources}: no mask of {num_looked} samples{f' of {total}' if num_looked < total else ''} has a cell"
    if is_needed and num_looked == total:
        raise InputError(
            f"{what}, so there is nothing to learn; check that the masks belong to these images and that the "
            "converted categories are cells"
        )
    return f"{what}; glioma-dist shards inspect {readers[0].source} --sheet sheet.png draws some of them"


def _spread(reader: ShardReader) -> Iterator[tuple[int, int]]:
    """Shard and place of at most `MOST_SAMPLES` samples, evenly over the set."""
    total = len(reader)
    count = min(total, MOST_SAMPLES)
    shard, first = 0, 0
    for number in range(count):
        position = number * total // count
        while position >= first + reader.shard_sizes[shard]:
            first += reader.shard_sizes[shard]
            shard += 1
        yield shard, position - first
