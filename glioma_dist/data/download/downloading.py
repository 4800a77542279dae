"""Download a published data set: show its licence, check the disk, fetch, verify, unpack."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from glioma_dist import files
from glioma_dist.data.download.published import MAX_FILES, PublishedFile, PublishedSet
from glioma_dist.data.download.resumable import Resumable, hash_file, measure, read_json
from glioma_dist.data.download.unpacking import count_files, free_bytes, unpack, unpacked_bytes
from glioma_dist.data.shards.storage import Patience
from glioma_dist.errors import InputError, UnavailableError

WORK = ".download"
"""The folder of what is not finished, in the folder of the data set."""
RECORD = "download.json"
SECONDS_BETWEEN_LINES = 20.0
SECONDS_BETWEEN_UPDATES = 0.5
"""Of the line that a terminal shows in place."""
SPARE_BYTES = 2**24
GIB = 2**30


def download(
    published: PublishedSet,
    out: Path,
    url: str | None = None,
    keep_archives: bool = False,
    patience: Patience | None = None,
) -> None:
    """Download a data set to the folder `out`, and unpack its archives there.

    url: a mirror; see `PublishedSet.at`. What an earlier call completed is not downloaded again.
    Raises InputError where the data set cannot be had or written, UnavailableError where a server does not answer.
    """
    published = published.at(url) if url else published
    patience = patience or Patience()
    print(f"{published.title}, from {published.base}", flush=True)
    print(f"licence:  {published.licence}\ncitation: {published.citation}", flush=True)
    files.make_folder(out)
    with _alone(out):
        record = _read_record(out, published)
        listed = published.list_files(partial(read_json, patience=patience))
        missing = [file for file in listed if not _is_complete(out, file, record)]
        _check_space(out, missing, patience)
        for file in missing:
            _get(out, file, record, patience)
        for file in listed:
            if file.is_archive and not record["files"][file.name].get("unpacked"):
                _unpack(out, file, record, published, keep_archives)
        _check_found(published, out)
    files.remove_tree(out / WORK)
    print(f"{out}: complete. Sizes, checksums and licence are in {out / RECORD}. The next command:")
    print(
        f"glioma-dist convert {published.name} --source {shlex.quote(str(out))} --out {_shards(published)}", flush=True
    )


def archive_folder(file: PublishedFile) -> str:
    """The folder, below that of the data set, to which an archive is unpacked."""
    return re.sub(r"(\.tar)?\.(zip|tar|gz|tgz|bz2|xz)$", "", file.name, flags=re.IGNORECASE)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Raises UnavailableError where another process downloads to the same folder."""
    files.make_folder(out / WORK)
    path = out / WORK / "lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise files.cannot_write(path, error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UnavailableError(f"{out}: another process downloads to it; wait until it has ended") from None
    finally:
        os.close(lock)


def _read_record(out: Path, published: PublishedSet) -> dict[str, Any]:
    """What download.json says is here, or an empty one. Raises InputError where it is of another data set."""
    path = out / RECORD
    empty = {
        "dataset": published.name,
        "licence": published.licence,
        "citation": published.citation,
        "files": {},
    }
    if not path.exists():
        return empty
    found = files.read_json(path)
    entries = found.get("files") if isinstance(found, dict) else None
    if (
        not isinstance(entries, dict)
        or found.get("dataset") != published.name
        or not all(isinstance(entry, dict) for entry in entries.values())
    ):
        raise InputError(f"{path}: is not that of {published.title}; give another --out, or remove the file")
    return empty | {"files": entries}


def _is_complete(out: Path, file: PublishedFile, record: dict[str, Any]) -> bool:
    """Whether an earlier call downloaded a file, and it, or what was unpacked from it, is still there."""
    entry = record["files"].get(file.name)
    if entry is None or (file.md5 is not None and entry.get("md5") != file.md5):
        return False
    if entry.get("unpacked"):
        return (out / archive_folder(file)).is_dir()
    try:
        size = os.stat(out / file.name).st_size
    except OSError:
        return False
    return size == entry.get("num_bytes")


def _check_space(out: Path, missing: list[PublishedFile], patience: Patience) -> None:
    """Raises InputError where the disk is too small for what is to come. An archive is unpacked beside itself, to at
    least its own size; how large exactly is checked when it is there."""
    needed = 0
    for file in missing[:MAX_FILES]:
        size = file.num_bytes or measure(file, patience)
        needed += size * (2 if file.is_archive else 1)
        needed -= Resumable(file, out / WORK, patience).num_bytes_here()
    if needed > 0:
        print(f"to download: {len(missing)} files; {needed / GIB:.2f} GiB of disk", flush=True)
        _check_free(out, needed)


def _check_free(out: Path, needed: int) -> None:
    free = free_bytes(out)
    if needed + SPARE_BYTES > free:
        raise InputError(
            f"{out}: {needed / GIB:.2f} GiB of disk are needed and {free / GIB:.2f} are free; free space, or give "
            "another --out; then run the same command again"
        )


def _get(out: Path, file: PublishedFile, record: dict[str, Any], patience: Patience) -> None:
    """Download a file, or take one that is there already and is the published one."""
    path, resumable = out / file.name, Resumable(file, out / WORK, patience)
    record["files"].pop(file.name, None)
    if path.exists() or path.is_symlink():
        arrived = hash_file(path)
        is_same = arrived.md5 == file.md5 if file.md5 else arrived.num_bytes == measure(file, patience)
        if not is_same:
            raise InputError(
                f"{path}: is there already and is not the published file; move it away, or give another --out"
            )
    else:
        arrived = resumable.fetch(_Progress(file.name, resumable.num_bytes_here()).show)
        files.make_folder(path.parent)
        try:
            files.sync(resumable.partial)
            files.rename_in_order((resumable.partial, path))
        except OSError as error:
            raise files.cannot_write(path, error) from None
        resumable.remove()
    record["files"][file.name] = {
        "url": file.url,
        "num_bytes": arrived.num_bytes,
        "sha256": arrived.sha256,
        "md5": arrived.md5,
        "verified": "MD5 and size, as published" if file.md5 else "size only: no checksum is published",
    }
    files.write_json_atomically(out / RECORD, record)
    how = "its MD5 sum is the published one" if file.md5 else f"no checksum is published; SHA-256 {arrived.sha256}"
    print(f"{file.name}: {arrived.num_bytes} bytes; {how}", flush=True)


def _unpack(
    out: Path, file: PublishedFile, record: dict[str, Any], published: PublishedSet, keep_archives: bool
) -> None:
    archive, folder = out / file.name, out / archive_folder(file)
    entry = record["files"][file.name]
    if folder.exists() or folder.is_symlink():
        if not entry.get("is_unpacking"):
            raise InputError(f"{folder}: is there already, and {archive} is to be unpacked to it; move the folder away")
        # A kill just after the folder was renamed into place, as a whole.
        found = count_files(folder)
    else:
        size = unpacked_bytes(archive, published.max_unpacked_bytes)
        if size is not None:
            _check_free(out, size)
        entry["is_unpacking"] = True
        files.write_json_atomically(out / RECORD, record)
        found = unpack(archive, folder, published.max_unpacked_bytes)
    entry.pop("is_unpacking", None)
    entry["unpacked"] = {
        "folder": archive_folder(file),
        "num_files": found.num_files,
        "num_bytes": found.num_bytes,
    }
    files.write_json_atomically(out / RECORD, record)
    if not keep_archives:
        files.remove_quietly(archive)
    print(f"{folder}: {found.num_files} files unpacked", flush=True)


def _check_found(published: PublishedSet, out: Path) -> None:
    try:
        published.find(str(out))
    except InputError as error:
        raise InputError(f"everything is downloaded, but convert {published.name} would not read it: {error}") from None


def _shards(published: PublishedSet) -> str:
    return f"shards/{published.name.replace('-', '_')}"


class _Progress:
    """Tells how much of a file has come: in place on a terminal, otherwise a line a few times a minute."""

    def __init__(self, name: str, num_bytes: int) -> None:
        self.name, self.is_terminal = name, sys.stdout.isatty()
        self.since, self.first, self.last = time.monotonic(), num_bytes, 0.0
        if num_bytes:
            print(f"{name}: {num_bytes} bytes are here already", flush=True)
        elif not self.is_terminal:
            print(f"{name}: begins", flush=True)

    def show(self, here: int, size: int) -> None:
        now = time.monotonic()
        is_end = here == size
        pause = SECONDS_BETWEEN_UPDATES if self.is_terminal else SECONDS_BETWEEN_LINES
        is_open_line = self.is_terminal and self.last > 0
        if now - (self.last or self.since) < pause and not (is_end and is_open_line):
            return
        speed = max(0, here - self.first) / max(now - self.since, 1e-3)
        self.last = now
        text = (
            f"{self.name}: {here / 2**20:.0f} of {size / 2**20:.0f} MiB ({here / size:.0%}), {speed / 2**20:.2f} MiB/s"
        )
        print(
            f"\r{text}  " if self.is_terminal else text, end="\n" if is_end or not self.is_terminal else "", flush=True
        )
