"""What stands beside the shards: index.json and the tables of members, written and read with suspicion.

Whatever these files say is later joined to a path or used as a length, so all of it is checked first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glioma_dist.data.storage import LocalFolder, RemoteFolder
from glioma_dist.errors import InputError

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
EXTENSIONS = ("png", "mask.png", "json")
MAX_SHARD_BYTES, MAX_SAMPLE_BYTES = 2**40, 2**30
# USTAR holds names of 100 bytes; `.mask.png` takes 9 of them.
MAX_KEY_LENGTH = 90
NO_FACTS = [-1, -1]
KEY_PATTERN = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_LENGTH}}}")
SHARD_NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}\.tar")
HOW_TO_CONVERT = "convert first, for example: python tools/convert_livecell.py --source DIR --out shards/livecell"


def members_name(shard_name: str) -> str:
    """The name of the table of members beside a shard."""
    return shard_name.removesuffix(".tar") + ".members.json"


def write_json(path: Path, content: object, indent: int | None = None) -> None:
    """Write and sync a JSON file."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Member:
    """One sample in its shard: its key, the [offset, size] of its image, mask and facts, and the SHA-256 of the bytes
    from the first of these to the last, in hexadecimal, or None where the table has none."""

    key: str
    ranges: tuple[tuple[int, int], ...]
    sha256: str | None

    @property
    def span(self) -> tuple[int, int]:
        """First byte and end of what one read brings."""
        return sample_span(self.ranges)

    def is_whole(self, data: bytes) -> bool:
        """Whether `data`, the bytes of the span, are those that were written, as far as can be told."""
        return self.sha256 is None or hashlib.sha256(data).hexdigest() == self.sha256


class MemberTable:
    """The members of one shard, packed: a table may have tens of thousands, and many tables are kept."""

    def __init__(self, table: list[dict]) -> None:
        self.keys = [member["key"] for member in table]
        pairs = [[member.get(extension, NO_FACTS) for extension in EXTENSIONS] for member in table]
        self._ranges = np.asarray(pairs, dtype=np.int64).reshape(-1, len(EXTENSIONS), 2)
        self._digests = [bytes.fromhex(member["sha256"]) if "sha256" in member else None for member in table]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: int) -> Member:
        # Facts that are missing lie, empty, where the image does.
        pairs = [
            pair if pair != NO_FACTS else [self._ranges[place, 0, 0].item(), 0] for pair in self._ranges[place].tolist()
        ]
        digest = self._digests[place]
        return Member(self.keys[place], tuple(map(tuple, pairs)), digest.hex() if digest else None)


def sample_span(ranges: Iterable[Sequence[int]]) -> tuple[int, int]:
    """First byte and end of a sample's members, each [offset, size]: they lie side by side."""
    return min(offset for offset, _ in ranges), max(offset + size for offset, size in ranges)


def read_index(source: LocalFolder | RemoteFolder) -> dict:
    """index.json of a folder of shards. Raises InputError where it is missing or says what cannot be."""
    if isinstance(source, LocalFolder):
        _check_folder(source.folder)
    path = source.where(INDEX_NAME)
    index = _as_json(source.read_all(INDEX_NAME, _is_json), path)
    if not isinstance(index, dict) or index.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path}: is not of format version {FORMAT_VERSION}; convert again")
    texts, shards = [index.get(name) for name in ("dataset", "split", "licence")], index.get("shards")
    if not all(isinstance(text, str) for text in texts) or not isinstance(shards, list):
        raise InputError(f"{path}: lacks dataset, split, licence or shards; convert again")
    for shard in shards:
        if not isinstance(shard, dict) or not _is_sane_shard(shard):
            raise InputError(f"{path}: describes a shard that cannot be ({str(shard)[:120]}); convert again")
    if index.get("num_samples") != sum(shard["num_samples"] for shard in shards):
        raise InputError(f"{path}: num_samples is not the sum over its shards; convert again")
    if len({shard["name"] for shard in shards}) != len(shards):
        raise InputError(f"{path}: names a shard twice; convert again")
    return index


def read_members(source: LocalFolder | RemoteFolder, shard: dict) -> MemberTable:
    """A shard's table of members, checked against `shard`, its entry in the index. Raises InputError."""
    name = members_name(shard["name"])
    path = source.where(name)

    def is_whole(data: bytes) -> bool:
        return shard.get("members_sha256") in (None, hashlib.sha256(data).hexdigest())

    data = source.read_all(name, is_whole)
    table = _as_json(data, path)
    if not isinstance(table, list) or len(table) != shard["num_samples"]:
        raise InputError(f"{path}: does not list {shard['num_samples']} samples; convert again")
    for member in table:
        if not isinstance(member, dict) or not _is_sane_member(member, shard["bytes"]):
            raise InputError(f"{path}: describes a sample that cannot be ({str(member)[:120]}); convert again")
    if not is_whole(data):
        raise InputError(f"{path}: is not the file that {INDEX_NAME} has the SHA-256 of; convert again")
    return MemberTable(table)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {HOW_TO_CONVERT}")
    if (folder / INDEX_NAME).is_file():
        return
    splits = sorted(index.parent.name for index in folder.glob(f"*/{INDEX_NAME}"))
    hint = f"name one of its splits: {', '.join(splits)}" if splits else HOW_TO_CONVERT
    if not splits and any(folder.glob("*.tar")):
        hint = f"convert again, or for somebody else's tars: python tools/inspect_shards.py {folder} --index"
    raise InputError(f"{folder}: holds no {INDEX_NAME}, so it is no folder of shards; {hint}")


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


def _as_json(data: bytes, path: str) -> object:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is no JSON; convert again") from None


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_sane_shard(shard: dict) -> bool:
    return (
        SHARD_NAME_PATTERN.fullmatch(str(shard.get("name"))) is not None
        and _is_digest(shard.get("sha256"))
        and ("members_sha256" not in shard or _is_digest(shard["members_sha256"]))
        and _is_count(shard.get("bytes"), MAX_SHARD_BYTES)
        and _is_count(shard.get("num_samples"), shard["bytes"])
    )


def _is_sane_member(member: dict, num_bytes: int) -> bool:
    """Whether the key is of the right form, each [offset, size] lies within a file of `num_bytes`, and all of them
    near each other. Facts and SHA-256 may be missing."""
    pairs = [member.get(extension) for extension in EXTENSIONS if extension != "json" or extension in member]
    return (
        KEY_PATTERN.fullmatch(str(member.get("key"))) is not None
        and ("sha256" not in member or _is_digest(member["sha256"]))
        and all(
            isinstance(pair, list)
            and len(pair) == 2
            and all(_is_count(number, num_bytes) for number in pair)
            and sum(pair) <= num_bytes
            for pair in pairs
        )
        and _spans_at_most(MAX_SAMPLE_BYTES, pairs)
    )


def _spans_at_most(num_bytes: int, pairs: list[list[int]]) -> bool:
    start, end = sample_span(pairs)
    return end - start <= num_bytes


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
