"""Shards: tar files in WebDataset's convention with an index, written once and read by byte range.

The format is described in shards/README.md. A folder holds one split:

    index.json               what the folder holds; written last
    00000.tar                members `<key>.png`, `<key>.mask.png`, `<key>.json`
    00000.members.json       where in 00000.tar each of those begins and how long it is
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path

from glioma_dist.data.sample import Sample, decode_image, decode_mask, encode_image, encode_mask
from glioma_dist.data.shards.cache import ShardCache
from glioma_dist.data.shards.index import (
    FORMAT_VERSION,
    INDEX_NAME,
    KEY_PATTERN,
    Member,
    MemberTable,
    members_name,
    read_index,
    read_members,
    read_metadata,
    write_json,
)
from glioma_dist.data.shards.storage import LocalFolder, Patience, RemoteFolder, open_folder
from glioma_dist.data.shards.tar_members import member_table
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import cannot_read, check_plain, rename_in_order, sync

SAMPLES_PER_SHARD = 64
SHARD_FACTS = ("name", "bytes", "sha256", "num_samples")
"""What a shard's entry in the index says of the data, and the fingerprint is made of."""
MAX_KEPT_MEMBERS = 2**19
"""In the tables that a reader keeps: some 150 MiB at most."""


class ShardWriter:
    """Writes one split's samples; a context manager.

    Everything goes to `.<split>.partial` beside `folder`, which is renamed to `folder` at the very end. An
    exception removes it; a killed process leaves it behind, and the next writer clears it away. The same
    samples in the same order give the same bytes.

    Raises InputError where `folder` exists and is no folder of shards: such a folder is never replaced.
    """

    def __init__(
        self,
        folder: str | Path,
        dataset: str,
        split: str,
        licence: str,
        citation: str | None = None,
        samples_per_shard: int = SAMPLES_PER_SHARD,
    ) -> None:
        self.folder = Path(folder)
        self.samples_per_shard = samples_per_shard
        self._head = {
            "format_version": FORMAT_VERSION,
            "dataset": dataset,
            "split": split,
            "licence": licence,
        }
        if citation is not None:
            self._head["citation"] = citation
        self._partial = self.folder.parent / f".{self.folder.name}.partial"
        self._replaced = self.folder.parent / f".{self.folder.name}.replaced"
        self._shards: list[dict] = []
        self._keys: set[str] = set()
        self._file = self._tar = None
        self._num_in_shard = 0

    def __enter__(self) -> ShardWriter:
        if self.folder.is_symlink() or (self.folder.exists() and not (self.folder / INDEX_NAME).is_file()):
            raise InputError(f"{self.folder}: exists and holds no shards, so it is not replaced; choose another --out")
        for leftover in (self._partial, self._replaced):
            if leftover.exists():
                shutil.rmtree(leftover)
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{self._partial}: cannot be made ({error.strerror}); choose another --out") from None
        return self

    def __exit__(self, exception_type: object, *_: object) -> None:
        try:
            if exception_type is None:
                self._finish_shard()
                self._finish_folder()
        finally:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._tar.close()
                self._file.close()
            shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, sample: Sample) -> None:
        """Append a sample.

        Raises InputError for a key of wrong form or seen before, or a mask of another size than its image.
        """
        if not KEY_PATTERN.fullmatch(sample.key) or sample.key in self._keys:
            raise InputError(f"sample {sample.key!r}: the key is not letters, digits, _ and - only, or comes twice")
        _check_same_size(sample, str(self.folder), "give a mask of the image's size")
        if self._tar is None:
            self._start_shard()
        self._keys.add(sample.key)
        self._tar.write(
            {
                "__key__": sample.key,
                "png": encode_image(sample.image),
                "mask.png": encode_mask(sample.mask),
                "json": json.dumps(sample.metadata, sort_keys=True, ensure_ascii=True).encode(),
            }
        )
        self._num_in_shard += 1
        if self._num_in_shard == self.samples_per_shard:
            self._finish_shard()

    def _start_shard(self) -> None:
        self._file = open(self._partial / f"{len(self._shards):05d}.tar", "wb")  # noqa: SIM115 (closed in _finish_shard)
        # Imported here, because webdataset imports PyTorch, and reading shards needs neither.
        from webdataset import TarWriter

        # Fixed time and owners: otherwise the same samples would give other bytes on another day or machine.
        self._tar = TarWriter(self._file, encoder=False, user="glioma-dist", group="glioma-dist", mtime=0)

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = Path(self._file.name)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        table = path.with_name(members_name(path.name))
        write_json(table, member_table(path))
        self._shards.append(
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": digest,
                "num_samples": self._num_in_shard,
                "members_sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
            }
        )
        self._file = self._tar = None
        self._num_in_shard = 0

    def _finish_folder(self) -> None:
        """Write the index, then exchange the finished folder for the one that may be there."""
        write_json(
            self._partial / INDEX_NAME,
            {**self._head, "num_samples": len(self._keys), "shards": self._shards},
            indent=1,
        )
        sync(self._partial)
        before = [(self.folder, self._replaced)] if self.folder.exists() else []
        rename_in_order(*before, (self._partial, self.folder))
        shutil.rmtree(self._replaced, ignore_errors=True)


class ShardReader:
    """Reads the samples of one split by byte range, from a folder or a URL.

    It keeps the index, and packed tables of members of the shards read last; no open file or connection, so it
    may be pickled to worker processes and survives a fork.

    index: index.json's content. shard_sizes: number of samples in each shard. fingerprint: SHA-256, in
    hexadecimal, of what index.json says about the data: equal fingerprints mean equal samples in equal order.
    lineage: which data set it is and its licence, as checkpoints hand it on.
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

    def read(self, shard: int, place: int) -> Sample:
        """The sample at `place` (from 0) of shard number `shard` (from 0).

        Raises InputError where the bytes are not there or not those that were written, a PNG is damaged, or mask
        and image differ in size.
        """
        entry, member = self.index["shards"][shard], self._table(shard)[place]
        if self._cache is None:
            start, end = member.span
            return self._decode(entry, member, self.source.read_range(entry["name"], start, end, member.is_whole))
        return self._read_cached(entry, member)

    def _read_cached(self, entry: dict, member: Member) -> Sample:
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
                return self._decode(entry, member, data)
            except InputError as error:
                if member.sha256 is not None:
                    raise
                # Nothing but the images' own checksums tells that the bytes are wrong.
                fault = error
                self._cache.drop(self.source, entry)
        if fault is not None and data is not None:
            raise fault
        data = self.source.read_range(entry["name"], start, end, member.is_whole, may_skip=True)
        return self._decode(entry, member, data)

    def _decode(self, entry: dict, member: Member, data: bytes) -> Sample:
        """A sample from the bytes of its span. Raises InputError where they are not those of a sample."""
        path, key, start = self.source.where(entry["name"]), member.key, member.span[0]
        image_data, mask_data, metadata_data = (
            data[offset - start : offset - start + size] for offset, size in member.ranges
        )
        metadata = read_metadata(metadata_data, f"{path}: {key}.json")
        image = decode_image(image_data, f"{path}: {key}.png")
        sample = Sample(key, image, decode_mask(mask_data, f"{path}: {key}.mask.png"), metadata)
        _check_same_size(sample, path, self.source.remedy)
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
        table = self._tables[shard] = read_members(self.source, self.index["shards"][shard])
        while len(self._tables) > 1 and sum(map(len, self._tables.values())) > MAX_KEPT_MEMBERS:
            self._tables.popitem(last=False)
        return table


def _check_same_size(sample: Sample, where: str, remedy: str) -> None:
    if sample.image.shape[:2] != sample.mask.shape:
        (height, width), (mask_height, mask_width) = sample.image.shape[:2], sample.mask.shape
        raise InputError(
            f"{where}: sample {sample.key}: the image is {width}x{height}, its mask "
            f"{mask_width}x{mask_height}; {remedy}"
        )
