"""Shards: tar files in WebDataset's convention with an index, written once (writer.py) and read by byte range.

The format is described in shards/README.md. A folder holds one split:

    index.json               what the folder holds; written last
    00000.tar                members `<key>.png`, `<key>.mask.png`, `<key>.json`, `<key>.instances.png`
    00000.members.json       where in 00000.tar each of those begins and how long it is
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path

from glioma_dist.data.images.grey_png import RowChoice, bands_of
from glioma_dist.data.sample import (
    Sample,
    check_same_size,
    decode_classes,
    decode_image,
    decode_instances,
    decode_mask,
)
from glioma_dist.data.shards.cache import ShardCache
from glioma_dist.data.shards.index import (
    FORMAT_VERSION,
    INDEX_NAME,
    Member,
    MemberTable,
    read_index,
    read_members,
    read_metadata,
)
from glioma_dist.data.shards.storage import LocalFolder, Patience, RemoteFolder, open_folder
from glioma_dist.data.shards.writer import ShardWriter
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import cannot_read, check_plain

__all__ = ["ShardReader", "ShardWriter"]

SHARD_FACTS = ("name", "bytes", "sha256", "num_samples")
"""What a shard's entry in the index says of the data, and the fingerprint is made of."""
LABEL_FACTS = ("classes", "has_instances", "has_ignore")
"""The same of the labels, in an index of format version 2."""
MAX_KEPT_MEMBERS = 2**19
"""In the tables that a reader keeps: some 150 MiB at most."""


class ShardReader:
    """Reads the samples of one split by byte range, from a folder or a URL.

    It keeps the index, and packed tables of members of the shards read last; no open file or connection, so it
    may be pickled to worker processes and survives a fork.

    index: index.json's content. shard_sizes: number of samples in each shard. fingerprint: SHA-256, in
    hexadecimal, of what index.json says about the data: equal fingerprints mean equal samples in equal order.
    lineage: which data set it is and its licence, as checkpoints hand it on.
    classes: names of the masks' classes 1, 2, …; none where there is one class. has_instances: whether each cell has a
    number. has_ignore: whether pixels may be IGNORE.
    source: the folder or URL. cache: where shards of a URL are kept; without one each sample is asked for on its own.

    Raises InputError where the folder is missing, is no folder of shards, or a local shard is not as long as the
    index says.
    """

    def __init__(self, folder: str | Path, cache: ShardCache | None = None, patience: Patience | None = None) -> None:
        self.source = open_folder(folder, patience)
        self._cache = cache if isinstance(self.source, RemoteFolder) else None
        self.index = read_index(self.source)
        self.shard_sizes: list[int] = [shard["num_samples"] for shard in self.index["shards"]]
        if isinstance(self.source, LocalFolder):
            for shard in self.index["shards"]:
                self._check_length(self.source.folder / shard["name"], shard["bytes"])
        if not sum(self.shard_sizes):
            raise InputError(f"{folder}: its {INDEX_NAME} names no sample; {self.source.remedy}")
        told = {name: self.index[name] for name in ("format_version", "dataset", "split")}
        if self.index["format_version"] == FORMAT_VERSION:
            told |= {name: self.index[name] for name in LABEL_FACTS}
        self.classes: tuple[str, ...] = tuple(self.index.get("classes", ()))
        self.has_instances: bool = self.index.get("has_instances", False)
        self.has_ignore: bool = self.index.get("has_ignore", False)
        told["shards"] = [{name: shard[name] for name in SHARD_FACTS} for shard in self.index["shards"]]
        self.fingerprint = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        self.lineage = [{"data": self.index["dataset"], "licence": self.index["licence"]}]
        self._tables: OrderedDict[int, MemberTable] = OrderedDict()

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def keys(self) -> list[str]:
        """The keys of all samples, in the order in which the shards hold them."""
        return [key for shard in range(len(self.shard_sizes)) for key in self._table(shard).keys]

    def describe(self, shard: int, place: int) -> str:
        """The sample at a place as users know it: its shard's path or URL, and its key."""
        return f"{self.source.where(self.index['shards'][shard]['name'])}: sample {self._table(shard)[place].key}"

    def read(self, shard: int, place: int, with_instances: bool = True, choose_rows: RowChoice | None = None) -> Sample:
        """The sample at `place` (from 0) of shard number `shard` (from 0).

        with_instances: whether to decode them, where the shards have them. choose_rows: from the image's height and
        width to the rows of it that are needed; others may hold anything. The mask is whole.
        Raises InputError where the bytes are not there or not those that were written, a PNG is damaged, or mask
        and image differ in size.
        """
        entry, member = self.index["shards"][shard], self._table(shard)[place]
        if self._cache is None:
            start, end = member.span
            data = self.source.read_range(entry["name"], start, end, member.is_whole)
            return self._decode(entry, member, data, with_instances, choose_rows)
        return self._read_cached(entry, member, with_instances, choose_rows)

    def _read_cached(self, entry: dict, member: Member, with_instances: bool, choose_rows: RowChoice | None) -> Sample:
        """Bytes of the cache are wrong where its disk is: then they are fetched again, and only what comes wrong from
        the source is its fault."""
        (start, end), fault = member.span, None
        for _ in range(2):
            data = self._cache.read_range(self.source, entry, start, end)
            if data is None:
                break
            if not member.is_whole(data):
                self._cache.drop(self.source, entry)
                continue
            try:
                return self._decode(entry, member, data, with_instances, choose_rows)
            except InputError as error:
                if member.sha256 is not None:
                    raise
                # Nothing but the images' own checksums tells that the bytes are wrong.
                fault = error
                self._cache.drop(self.source, entry)
        if fault is not None and data is not None:
            raise fault
        data = self.source.read_range(entry["name"], start, end, member.is_whole, may_skip=True)
        return self._decode(entry, member, data, with_instances, choose_rows)

    def _decode(
        self, entry: dict, member: Member, data: bytes, with_instances: bool, choose_rows: RowChoice | None
    ) -> Sample:
        """A sample from the bytes of its span. Raises InputError where they are not those of a sample."""
        path, key, start = self.source.where(entry["name"]), member.key, member.span[0]
        image_data, mask_data, metadata_data, instances_data = (
            data[offset - start : offset - start + size] for offset, size in member.ranges
        )
        metadata = read_metadata(metadata_data, f"{path}: {key}.json")
        image = decode_image(image_data, f"{path}: {key}.png", choose_rows)
        bands = bands_of(image_data)
        where = f"{path}: {key}.mask.png"
        if self.classes or self.has_ignore:
            mask = decode_classes(mask_data, where, max(1, len(self.classes)), self.has_ignore)
        else:
            mask = decode_mask(mask_data, where)
        instances = None
        if self.has_instances and with_instances:
            instances = decode_instances(instances_data, f"{path}: {key}.instances.png")
        sample = Sample(key, image, mask, metadata, instances, None if bands is None else bands.value_range)
        check_same_size(sample, path, self.source.remedy)
        # Last, because those above tell which part it is.
        if not member.is_whole(data):
            raise InputError(f"{path}: sample {key} is damaged (its SHA-256 does not match); {self.source.remedy}")
        return sample

    def _check_length(self, path: Path, num_bytes: int) -> None:
        try:
            found = os.stat(path)
        except OSError as error:
            raise InputError(one_line(f"{cannot_read(path, error)}; {self.source.remedy}")) from None
        check_plain(path, found)
        if found.st_size != num_bytes:
            raise InputError(f"{path}: {found.st_size} bytes found, {num_bytes} expected; {self.source.remedy}")

    def member_ranges(self, shard: int) -> list[tuple[int, int]]:
        """[offset, size] of every member that the samples of a shard take."""
        return self._table(shard).all_ranges()

    def _table(self, shard: int) -> MemberTable:
        if shard in self._tables:
            self._tables.move_to_end(shard)
            return self._tables[shard]
        table = self._tables[shard] = read_members(self.source, self.index["shards"][shard], self.has_instances)
        while len(self._tables) > 1 and sum(map(len, self._tables.values())) > MAX_KEPT_MEMBERS:
            self._tables.popitem(last=False)
        return table
