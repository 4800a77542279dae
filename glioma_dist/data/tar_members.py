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
from pathlib import Path

from glioma_dist.data.shard_index import EXTENSIONS, KEY_PATTERN, MAX_SAMPLE_BYTES, sample_span
from glioma_dist.errors import InputError

MAX_HEADER_BYTES = 2**20
"""Of one header with its long names and other records; a few hundred are usual."""
OUR_MEMBERS = {extension: extension for extension in EXTENSIONS}


def member_table(path: Path, members: Mapping[str, str] = OUR_MEMBERS) -> list[dict]:
    """For each sample of a tar, in order: key, {extension: [offset, size]} in bytes, and the SHA-256 of all from the
    first of these bytes to the last.

    members: what the tar's members end with, by the extension that each stands for here. `json` may be missing.
    Raises InputError where it is no plain tar, is cut short, or a sample lacks its image or mask.
    """
    table: list[dict] = []
    keys: dict[str, str] = {}  # by the names that samples have in the tar
    for name, offset, size in _members(path):
        stem, _, extension = name.rpartition("/")[2].partition(".")
        sample = name[: len(name) - len(extension) - 1].lstrip("./")
        ours = next((ours for ours, theirs in members.items() if theirs == extension), None)
        if ours is None or not stem:
            continue
        if sample not in keys:
            keys[sample] = _key(sample, keys.values())
            table.append({"key": keys[sample]})
        if table[-1]["key"] != keys[sample]:
            raise InputError(f"{path}: {name!r} does not stand with the rest of its sample; mend the tar")
        if ours in table[-1]:
            raise InputError(f"{path}: {name!r} comes twice in one sample; mend the tar")
        table[-1][ours] = [offset, size]
    with open(path, "rb", buffering=0) as file:
        for member in table:
            _complete(member, members, file.fileno(), path)
    return table


def _key(sample: str, taken: Collection[str]) -> str:
    """A sample's name as a key: what a key may not have becomes `_`, and where that makes another sample's key of it, a
    part of its SHA-256 is added."""
    key = re.sub(r"[^A-Za-z0-9_-]", "_", sample)
    return f"{key}-{hashlib.sha256(sample.encode(errors='replace')).hexdigest()[:8]}" if key in taken else key


def _complete(member: dict, members: Mapping[str, str], file: int, path: Path) -> None:
    """Check one sample of the table, and add its SHA-256."""
    key, ranges = member["key"], [member[extension] for extension in EXTENSIONS if extension in member]
    missing = [f"{key}.{members[extension]}" for extension in ("png", "mask.png") if extension not in member]
    if missing:
        raise InputError(f"{path}: has no {' and no '.join(missing)}; each sample needs its image and its mask")
    if not KEY_PATTERN.fullmatch(key):
        raise InputError(f"{path}: the key {key[:120]!r} is empty or too long; rename the tar's members")
    start, end = sample_span(ranges)
    if end - start > MAX_SAMPLE_BYTES:
        raise InputError(f"{path}: sample {key} spans {end - start} bytes, more than {MAX_SAMPLE_BYTES}; split it")
    data = os.pread(file, end - start, start)
    if len(data) != end - start:
        raise InputError(f"{path}: cut short within sample {key}; get the file anew")
    member["sha256"] = hashlib.sha256(data).hexdigest()


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each plain file of a tar."""
    last = -1
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:
            for info in tar:
                if info.offset <= last or info.size < 0:
                    raise tarfile.ReadError("a header points backwards")
                last = info.offset
                if info.issparse():
                    raise tarfile.ReadError("sparse files are not read")
                if info.isreg():
                    yield info.name, info.offset_data, info.size
            if tar.offset > os.fstat(file.fileno()).st_size:
                raise tarfile.ReadError("the last file is cut short")
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a tar ({what}); uncompress it, or get it anew") from None


class _Bounded:
    """A file for tarfile that gives so many bytes at a time and no more: what a header claims is asked for whole."""

    def __init__(self, file: object) -> None:
        self.file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)
