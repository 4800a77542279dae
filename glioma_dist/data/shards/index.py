"""What stands beside the shards: index.json and the tables of members, written and read with suspicion.

Whatever these files say is later joined to a path or used as a length, so all of it is checked first.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glioma_dist import files
from glioma_dist.data.advice import IN_GENERAL, how_to_make_shards
from glioma_dist.data.shards.checks import (
    EXTENSIONS,
    MAX_TEXT_LENGTH,
    NO_FACTS,
    fault_of_classes,
    fault_of_member,
    fault_of_shard,
    fault_of_table,
    is_text,
    is_unused,
    sample_span,
    short,
)
from glioma_dist.data.shards.checks import KEY_PATTERN as KEY_PATTERN  # a part of the format
from glioma_dist.data.shards.checks import MAX_KEY_LENGTH as MAX_KEY_LENGTH
from glioma_dist.data.shards.storage import LocalFolder, RemoteFolder
from glioma_dist.errors import InputError, one_line, printable

PLAIN_VERSION, FORMAT_VERSION = 1, 2
"""The first is that of masks of 0 and 1 alone, the second that of several classes, ignored pixels or instances."""
INDEX_NAME = "index.json"
MAX_INDEX_BYTES, MAX_INDEX_ITEMS = 2**26, 2**21
"""Of index.json: some 280,000 shards. A few bytes of JSON can become an object of 64, so these are counted, too."""
MAX_TABLE_BYTES, MAX_TABLE_ITEMS = 2**26, 32
"""Of a table of members: in all, and of the second so many for each sample."""
TABLE_BYTES_PER_SAMPLE = 1024


def members_name(shard_name: str) -> str:
    """The name of the table of members beside a shard."""
    return shard_name.removesuffix(".tar") + ".members.json"


def write_json(path: Path, content: object, indent: int | None = None) -> None:
    """Write and sync a JSON file; all of it or nothing."""
    files.write_json_atomically(path, content, indent)


def index_texts(folder: Path, dataset: str, split: str, licence: str) -> dict[str, str]:
    """What index.json says of all its samples, by its names there; bytes that are not UTF-8, as the names of files and
    flags may have, are written as escapes. Raises InputError for a text that no reader would take."""
    texts = {"dataset": dataset, "split": split, "licence": licence}
    texts = {name: text if is_text(text) else printable(text) for name, text in texts.items()}
    for name, text in texts.items():
        if not is_text(text):
            what = f"the {name} is {short(text)}, not a text of 1 to {MAX_TEXT_LENGTH} characters"
            raise InputError(one_line(f"{folder}: {what}; give another --{name}"))
    return texts


@dataclass(frozen=True)
class Member:
    """One sample in its shard: its key, the [offset, size] of its image, mask, metadata and instances, and the SHA-256
    of the bytes from the first of these to the last, in hexadecimal, or None where the table has none."""

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

    def all_ranges(self) -> list[tuple[int, int]]:
        """[offset, size] of every member."""
        return [tuple(pair) for pairs in self._ranges.tolist() for pair in pairs if pair != NO_FACTS]

    def __getitem__(self, place: int) -> Member:
        # Metadata and instances that are missing lie, empty, where the image does.
        pairs = [
            pair if pair != NO_FACTS else [self._ranges[place, 0, 0].item(), 0] for pair in self._ranges[place].tolist()
        ]
        digest = self._digests[place]
        return Member(self.keys[place], tuple(map(tuple, pairs)), digest.hex() if digest else None)


def read_index(source: LocalFolder | RemoteFolder) -> dict:
    """index.json of a folder of shards. Raises InputError where it is missing or says what cannot be."""
    if isinstance(source, LocalFolder):
        check_folder(source.folder)
    path = source.where(INDEX_NAME)
    index = _as_json(source.read_all(INDEX_NAME, MAX_INDEX_BYTES, _is_json), source, INDEX_NAME, MAX_INDEX_ITEMS)

    def refuse(what: str) -> InputError:
        return InputError(one_line(f"{path}: {what}; {source.remedy}"))

    if not isinstance(index, dict):
        raise refuse(f"is {short(index)}, not an index of shards")
    version = index.get("format_version")
    if type(version) is not int or version not in (PLAIN_VERSION, FORMAT_VERSION):
        raise refuse(f"its format_version is {short(version)}, and {PLAIN_VERSION} and {FORMAT_VERSION} are read here")
    for name in ("dataset", "split", "licence"):
        if not is_text(index.get(name)):
            raise refuse(f"its {name} is {short(index.get(name))}, not a text of 1 to {MAX_TEXT_LENGTH} characters")
    fault = fault_of_classes(index) if version == FORMAT_VERSION else None
    if fault:
        raise refuse(fault)
    shards = index.get("shards")
    if not isinstance(shards, list):
        raise refuse(f"its shards are {short(shards)}, not a list")
    for number, shard in enumerate(shards):
        fault = fault_of_shard(shard)
        if fault:
            raise refuse(f"describes a shard that cannot be: number {number}: {fault}")
    if not is_unused(index.get("unused_members")):
        raise refuse("its unused_members are not a count and names")
    total, told = sum(shard["num_samples"] for shard in shards), index.get("num_samples")
    if type(told) is not int or told != total:
        raise refuse(f"its num_samples is {short(told)}, and its shards have {total} together")
    if len({shard["name"] for shard in shards}) != len(shards):
        raise refuse("names a shard twice")
    return index


def read_members(source: LocalFolder | RemoteFolder, shard: dict, has_instances: bool = False) -> MemberTable:
    """A shard's table of members, checked against `shard`, its entry in the index. Raises InputError."""
    name, num_samples = members_name(shard["name"]), shard["num_samples"]

    def is_whole(data: bytes) -> bool:
        return shard.get("members_sha256") in (None, hashlib.sha256(data).hexdigest())

    def refuse(what: str) -> InputError:
        return InputError(one_line(f"{source.where(name)}: {what}; {source.remedy}"))

    most = min(MAX_TABLE_BYTES, TABLE_BYTES_PER_SAMPLE * (num_samples + 4))
    data = source.read_all(name, most, is_whole)
    table = _as_json(data, source, name, MAX_TABLE_ITEMS * (num_samples + 4))
    if not isinstance(table, list) or len(table) != num_samples:
        raise refuse(f"does not list {num_samples} samples")
    for place, member in enumerate(table):
        fault = fault_of_member(member, shard["bytes"], has_instances)
        if fault:
            raise refuse(f"describes a sample that cannot be: number {place}: {fault}")
    fault = fault_of_table(table)
    if fault:
        raise refuse(f"describes samples that cannot be: {fault}")
    if not is_whole(data):
        raise refuse(f"is not the file that {INDEX_NAME} describes (the SHA-256 differs)")
    return MemberTable(table)


def read_metadata(data: bytes, where: str) -> dict:
    """The metadata of a sample from its JSON; numbers that JSON does not have (NaN, Infinity) become None.

    Raises InputError where it is no JSON object.
    """
    try:
        metadata = json.loads(
            data or b"{}", object_pairs_hook=files.unique_names, parse_constant=lambda _: None, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else f"is no JSON ({error})"
        raise InputError(one_line(f"{where}: {what}; correct it, or omit it")) from None
    if not isinstance(metadata, dict):
        raise InputError(one_line(f"{where}: is no JSON object; correct it, or omit it"))
    return metadata


def _finite(text: str) -> float | None:
    value = float(text)
    return value if np.isfinite(value) else None


def check_folder(folder: Path, use: str = "shards") -> None:
    """Raises InputError, with what to do, where a folder of this machine holds no shards. use: what needs them."""
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise InputError(f"{folder}: is a file, not a folder of shards; {IN_GENERAL}")
        os.lstat(folder / INDEX_NAME)
        return
    except ValueError as error:
        raise InputError(f"{printable(folder)}: cannot be a folder's name ({error})") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise files.cannot_read(error.filename or folder, error) from None
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; {IN_GENERAL}")
    splits = sorted(index.parent.name for index in folder.glob(f"*/{INDEX_NAME}"))
    hint = f"name one of its splits: {', '.join(splits)}" if splits else how_to_make_shards(folder, use)
    raise InputError(one_line(f"{folder}: holds no {INDEX_NAME}, so it is no folder of shards; {hint}"))


def _is_json(data: bytes) -> bool:
    try:
        _parse(data, MAX_INDEX_ITEMS)
    except (ValueError, RecursionError):
        return False
    return True


def _as_json(data: bytes, source: LocalFolder | RemoteFolder, name: str, max_items: int) -> object:
    try:
        return _parse(data, max_items)
    except RecursionError:
        what = "nested too deeply"
    except ValueError as error:
        what = error
    raise InputError(one_line(f"{source.where(name)}: is no JSON that can be read ({what}); {source.remedy}"))


def _parse(data: bytes, max_items: int) -> object:
    # Before anything is made of it: a mebibyte of `[],[],` becomes thirty of objects.
    if sum(map(data.count, (b",", b"[", b"{"))) > max_items:
        raise ValueError(f"more than {max_items} values")
    return json.loads(data.decode("utf-8"), object_pairs_hook=files.unique_names, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
