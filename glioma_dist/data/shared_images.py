"""Images and groups that training and validation share, found before a run begins, from little more than the tables of
members: a validation on images that a network has learned from says nothing about new ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from glioma_dist.data.near_duplicates import LEAST_SIMILARITY, similarity, sketch
from glioma_dist.data.sample import decode_image
from glioma_dist.data.shards.index import Member, read_members, read_metadata
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import LocalFolder
from glioma_dist.errors import RunError

MOST_TABLES = 64
"""Tables of members that are read of a set at a URL, evenly spread: each is a request. Of a local set all are read."""
MOST_COMPARED, MOST_COMPARED_REMOTE = 256, 16
"""Pairs of images of which only the bytes can tell whether they are the same."""
MOST_SIMILAR, MOST_SIMILAR_REMOTE = 16, 4
"""Pairs of one name, but of other bytes, that are decoded and compared."""
MOST_METADATA, MOST_METADATA_REMOTE = 20_000, 64
"""Samples of a set, evenly spread, whose group is read."""
NUM_THREADS = 8
WHAT_TO_DO = (
    "the validation scores are too high for new images; convert again with --split-seed, and --group-pattern where "
    "several images show the same cells (glioma-dist shards report lists all pairs)"
)
IMAGE, METADATA = 0, 2
"""Places of the parts of a sample in `Member.ranges`."""


@dataclass(frozen=True)
class Located:
    """A sample and where its bytes are."""

    reader: ShardReader
    shard: dict
    member: Member

    def read(self, part: int) -> bytes:
        """Read the bytes of its image or of its metadata. Raises RunError."""
        offset, size = self.member.ranges[part]
        return self.reader.source.read_range(self.shard["name"], offset, offset + size)

    @property
    def where(self) -> str:
        """The sample as users know it."""
        return f"{self.reader.source.where(self.shard['name'])}: sample {self.member.key}"


class SharedData(NamedTuple):
    """A line about images that both sets have, and one about groups; None where they share none."""

    images: str | None
    groups: str | None


def notes_on_shared_data(train: Sequence[ShardReader], val: ShardReader) -> SharedData:
    """Look for images and groups that both sets have.

    An image counts as shared if a sample of the other set has the same bytes, the same image under another name, or
    the same name and an image that shows the same. Groups are of one data set. What cannot be read is left to whoever
    needs it.
    """
    try:
        shared, num_looked = _shared_images(train, val)
        groups = _shared_groups(train, _groups(val), set(shared))
    except RunError:
        return SharedData(None, None)
    images = others = None
    if shared:
        total = f"{num_looked}" if num_looked == len(val) else f"{num_looked} of {len(val)}"
        are = "images is" if len(shared) == 1 else "images are"
        images = (
            f"--data.val {val.source}: {len(shared)} of {total} validation {are} also in the training data (for "
            f"example {shared[0]}); {WHAT_TO_DO}"
        )
    if groups:
        are = "group is" if len(groups) == 1 else "groups are"
        others = (
            f"--data.val {val.source}: {len(groups)} {are} also in the training data (for example {groups[0]}): other "
            f"images of the same cells or wells; {WHAT_TO_DO}"
        )
    return SharedData(images, others)


def _shared_images(train: Sequence[ShardReader], val: ShardReader) -> tuple[list[str], int]:
    """Keys of validation samples whose image a training set has, too; and how many were looked at."""
    own = list(_samples(val))
    by_key = {each.member.key: each for each in own}
    by_digest = {each.member.sha256: each for each in own if each.member.sha256}
    by_size: dict[int, list[Located]] = {}
    for each in own:
        by_size.setdefault(each.member.ranges[IMAGE][1], []).append(each)
    is_local = all(isinstance(reader.source, LocalFolder) for reader in (*train, val))
    num_bytes, num_similar = (MOST_COMPARED, MOST_SIMILAR) if is_local else (MOST_COMPARED_REMOTE, MOST_SIMILAR_REMOTE)
    shared: set[str] = set()
    same_size: list[tuple[Located, Located]] = []
    same_key: list[tuple[Located, Located]] = []
    for other in (each for reader in train for each in _samples(reader)):
        twin, namesake = by_digest.get(other.member.sha256), by_key.get(other.member.key)
        if twin is not None:
            shared.add(twin.member.key)
            continue
        if namesake is not None and len(same_key) < num_similar:
            same_key.append((namesake, other))
        same_size += [(each, other) for each in by_size.get(other.member.ranges[IMAGE][1], ())]
        del same_size[num_bytes:]
    for one, other in same_size:
        if one.member.key not in shared and one.read(IMAGE) == other.read(IMAGE):
            shared.add(one.member.key)
    for one, other in same_key:
        if one.member.key not in shared and _show_the_same(one, other):
            shared.add(one.member.key)
    return sorted(shared), len(own)


def _show_the_same(one: Located, other: Located) -> bool:
    pictures = [sketch(decode_image(each.read(IMAGE), each.where)) for each in (one, other)]
    return similarity(*pictures) >= LEAST_SIMILARITY


def _shared_groups(
    train: Sequence[ShardReader], own: Sequence[tuple[Located, tuple[str, str]]], shared: set[str]
) -> list[str]:
    """Names of groups of both sets, except those of images that are shared themselves. own: the validation samples."""
    groups = {group for _, group in own} - {group for located, group in own if located.member.key in shared}
    others = {group for reader in train for _, group in _groups(reader)} if groups else set()
    return sorted(name for _, name in groups & others)


def _groups(reader: ShardReader) -> list[tuple[Located, tuple[str, str]]]:
    """Samples with the data set and the name of their group, for those that have one."""
    is_local = isinstance(reader.source, LocalFolder)
    chosen = list(_samples(reader, MOST_METADATA if is_local else MOST_METADATA_REMOTE))
    with ThreadPoolExecutor(1 if is_local else NUM_THREADS) as threads:
        found = list(threads.map(lambda each: read_metadata(each.read(METADATA), each.where), chosen))
    named = [
        (each, metadata.get("dataset"), metadata.get("group")) for each, metadata in zip(chosen, found, strict=True)
    ]
    return [(each, (str(dataset), group)) for each, dataset, group in named if isinstance(group, str) and group]


def _samples(reader: ShardReader, most: int | None = None) -> Iterator[Located]:
    """The samples of a set, or of some evenly spread shards of a set at a URL; at most `most`, evenly spread."""
    shards = [shard for shard in reader.index["shards"] if shard["num_samples"]]
    if not isinstance(reader.source, LocalFolder):
        shards = shards[:: -(-len(shards) // MOST_TABLES)]
    total = sum(shard["num_samples"] for shard in shards)
    step = 1 if most is None else -(-total // most)
    number = 0
    for shard in shards:
        first = -number % step
        number += shard["num_samples"]
        if first >= shard["num_samples"]:
            continue
        table = read_members(reader.source, shard)
        for place in range(first, len(table), step):
            yield Located(reader, shard, table[place])
