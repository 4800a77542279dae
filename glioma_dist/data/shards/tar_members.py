"""Where in a tar each sample's members lie: what the table of members beside a shard says.

Tars come from anywhere. Only headers are read, never more than MAX_HEADER_BYTES at a time; a member's name becomes a
key and never a path; and every header must lie behind the one before, so that reading ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from glioma_dist.data.shards.checks import (
    EXTENSIONS,
    KEY_PATTERN,
    MAX_FACTS_BYTES,
    MAX_SAMPLE_BYTES,
    MAX_SAMPLES,
    sample_span,
)
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import open_plain

MAX_HEADER_BYTES = 2**20
"""Of one header with its long names and other records; a few hundred are usual."""
MAX_MEMBERS = 2**20
PIECE_BYTES = 2**20
OUR_MEMBERS = {extension: extension for extension in EXTENSIONS}


@dataclass(frozen=True)
class TarContents:
    """What is in a tar. table: for each sample, in order: key, {extension: [offset, size]} in bytes, and the SHA-256 of
    all from the first of these bytes to the last. unused: names of the members that no sample took, folders aside."""

    table: list[dict]
    unused: list[str]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A member of a tar. sample: its name without ending; extension: what the ending stands for here, None for one
    that stands for nothing."""

    name: str
    offset: int
    size: int
    sample: str
    extension: str | None

    @property
    def has_dot(self) -> bool:
        return "." in self.sample.rpartition("/")[2]


def member_table(path: Path, members: Mapping[str, str] = OUR_MEMBERS) -> list[dict]:
    """The table of `scan_tar`."""
    return scan_tar(path, members).table


def scan_tar(path: Path, members: Mapping[str, str] = OUR_MEMBERS) -> TarContents:
    """Find the samples of a tar, and the members that belong to none.

    A sample's name ends where the longest of the known endings begins, whatever the case of its letters. A name that
    has dots of its own (`w_0.5um.png`) is a sample's where image and mask have it; WebDataset itself ends each name at
    its first dot.

    members: what the tar's members end with, by the extension that each stands for here. `json` may be missing.
    Raises InputError where it is no plain tar, is cut short, or a sample lacks its image or mask.
    """
    with open_plain(path) as file:
        entries = [_entry(name, *place, members) for name, *place in _members(path, file)]
        of_names_with_dots: dict[str, set[str]] = {}
        for entry in entries:
            if entry.extension is not None and entry.has_dot:
                of_names_with_dots.setdefault(entry.sample, set()).add(entry.extension)
        table: list[dict] = []
        keys: dict[str, str] = {}  # by the names that samples have in the tar
        taken: set[str] = set()
        unused: list[str] = []
        for entry in entries:
            is_part = entry.has_dot and not of_names_with_dots.get(entry.sample, set()) >= {"png", "mask.png"}
            if entry.extension is None or is_part:
                unused.append(entry.name)
            else:
                _add(table, keys, taken, entry, path)
        for member in table:
            _complete(member, members, file.fileno(), path)
    if len(table) > MAX_SAMPLES:
        raise InputError(f"{path}: holds {len(table)} samples, more than {MAX_SAMPLES}; split it into several tars")
    return TarContents(table, unused)


def unused_members(path: Path, ranges: Collection[tuple[int, int]]) -> list[str]:
    """Names of the members of a tar whose [offset, size] are none of `ranges`, folders aside. Raises InputError."""
    known = {tuple(pair) for pair in ranges}
    with open_plain(path) as file:
        return [name for name, offset, size in _members(path, file) if (offset, size) not in known]


def _entry(name: str, offset: int, size: int, members: Mapping[str, str]) -> _Entry:
    base, lowered = name.rpartition("/")[2], name.lower()
    # Links and such have no bytes of their own; hidden files are those that systems add (`._x.png`).
    if offset >= 0 and not base.startswith("."):
        for ours, theirs in sorted(members.items(), key=lambda item: -len(item[1])):
            ending = "." + theirs.lower()
            if lowered.endswith(ending) and len(base) > len(ending):
                return _Entry(name, offset, size, name[: -len(ending)].lstrip("./"), ours)
    return _Entry(name, offset, size, name, None)


def _add(table: list[dict], keys: dict[str, str], taken: set[str], entry: _Entry, path: Path) -> None:
    """Add a member to its sample, the last of the table or a new one."""
    sample = entry.sample
    if sample not in keys:
        keys[sample] = _key(sample, taken)
        taken.add(keys[sample])
        table.append({"key": keys[sample]})
    if table[-1]["key"] != keys[sample]:
        what = f"{entry.name!r} does not stand with the rest of its sample; write the tar again, sample by sample"
        raise InputError(one_line(f"{path}: {what}"))
    if entry.extension in table[-1]:
        raise InputError(one_line(f"{path}: {entry.name!r} comes twice in one sample; remove one of the two"))
    table[-1][entry.extension] = [entry.offset, entry.size]


def _key(sample: str, taken: Collection[str]) -> str:
    """A sample's name as a key: what a key may not have becomes `_`, and where that makes another sample's key of it, a
    part of its SHA-256 is added."""
    key = re.sub(r"[^A-Za-z0-9_-]", "_", sample)
    return f"{key}-{hashlib.sha256(sample.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}" if key in taken else key


def _complete(member: dict, members: Mapping[str, str], file: int, path: Path) -> None:
    """Check one sample of the table, and add its SHA-256."""
    key, ranges = member["key"], [member[extension] for extension in EXTENSIONS if extension in member]
    missing = [f"{key}.{members[extension]}" for extension in ("png", "mask.png") if extension not in member]
    if missing:
        what = f"has no {' and no '.join(missing)}; each sample needs its image and its mask"
        raise InputError(one_line(f"{path}: {what}"))
    if not KEY_PATTERN.fullmatch(key):
        raise InputError(f"{path}: the key {key[:120]!r} is empty or too long; rename the tar's members")
    if "json" in member and member["json"][1] > MAX_FACTS_BYTES:
        what = f"{key}.{members['json']} has {member['json'][1]} bytes, more than {MAX_FACTS_BYTES}"
        raise InputError(f"{path}: {what}; keep large data elsewhere")
    start, end = sample_span(ranges)
    if end - start > MAX_SAMPLE_BYTES:
        raise InputError(f"{path}: sample {key} spans {end - start} bytes, more than {MAX_SAMPLE_BYTES}; split it")
    digest = hashlib.sha256()
    while start < end:
        data = os.pread(file, min(PIECE_BYTES, end - start), start)
        if not data:
            raise InputError(f"{path}: cut short within sample {key}; copy the file again")
        digest.update(data)
        start += len(data)
    member["sha256"] = digest.hexdigest()


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each member of a tar but its folders; offset -1 for what is no plain file, and
    for bytes behind the tar's end."""
    last = -1
    try:
        with tarfile.open(fileobj=_Bounded(file), mode="r:", encoding="utf-8") as tar:
            for count, info in enumerate(tar):
                tar.members.clear()  # tarfile keeps them all, a kilobyte each
                if count >= MAX_MEMBERS:
                    raise tarfile.ReadError(f"more than {MAX_MEMBERS} members; split it into several")
                if info.offset <= last or info.size < 0:
                    raise tarfile.ReadError("a header points backwards")
                last = info.offset
                if info.issparse():
                    raise tarfile.ReadError("sparse files are not read")
                if not info.isdir():
                    yield (info.name, info.offset_data, info.size) if info.isreg() else (info.name, -1, 0)
            num_bytes = os.fstat(file.fileno()).st_size
            if tar.offset > num_bytes:
                raise tarfile.ReadError("the last file is cut short")
            if _has_more(file, tar.offset):
                yield f"(bytes behind the tar's end, {tar.offset} to {num_bytes}: another tar?)", -1, 0
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        what = f"cannot be read as a tar ({error}); uncompress it if it is compressed, or get it again"
        raise InputError(one_line(f"{path}: {what}")) from None


def _has_more(file: BinaryIO, start: int) -> bool:
    """Whether anything but zeros, which end a tar, follows from byte `start` on."""
    while data := os.pread(file.fileno(), PIECE_BYTES, start):
        if data.count(0) < len(data):
            return True
        start += len(data)
    return False


class _Bounded:
    """A file for tarfile that gives so many bytes at a time and no more: what a header claims is asked for whole."""

    def __init__(self, file: object) -> None:
        self.file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)
