"""Complete shards from URLs, kept on a local disk for all processes of a machine together.

A shard is written under a temporary name, which its writer holds locked; when its SHA-256 is right it is renamed to
its final one, which is made of the full URL and of that SHA-256. The least recently used are dropped to make room.
A process that is killed leaves at most a temporary file that nobody holds, and the next one clears it away.

The cache never ends a run that can read from the URL: where another process holds a shard and does not answer, or the
disk is full, bytes are read from the URL.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from glioma_dist.data.shards.bodies import AnswerError, NoRangesError
from glioma_dist.data.shards.file_locks import HeldError, clear_away, held, is_at
from glioma_dist.data.shards.storage import RemoteFolder
from glioma_dist.errors import InputError, one_line

CHUNK_BYTES = 2**23
"""Of a shard, asked for at a time: each has its own tries and its own end in time."""
SHARD, PARTIAL, LOCK = ".tar", ".partial", ".lock"
SECONDS_WITHOUT = 60.0
"""From a failed write until the cache tries to keep a shard again."""
CANNOT_BE = (errno.ENOTDIR, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class ShardCache:
    """A folder with at most `max_bytes` of shards. Any number of processes may use it at once; it should lie on a
    disk of this machine, because locks over a network are not to be relied on."""

    folder: Path
    max_bytes: int
    _state: dict[str, float] = field(default_factory=dict, compare=False, repr=False)
    """Of this process: warnings that it has printed, and until when it reads without the cache."""

    def read_range(self, source: RemoteFolder, shard: dict, start: int, end: int) -> bytes | None:
        """Bytes `start` up to `end` of a shard, `shard` being its entry in the index; fetches it if need be.

        None where it cannot be kept here now: other processes' shards leave no room, the process that fetches it does
        not answer, or the disk fails; the last two print one line on stderr. Raises InputError where the shard
        cannot be had, is not what the index says, or is larger than the cache, and where the folder cannot be used.
        """
        path = self._path(source, shard)
        data = self._read(path, shard, start, end)
        if data is not None or self._state.get("paused until", 0.0) > time.monotonic():
            return data
        try:
            return self._fetch(source, shard, start, end)
        except HeldError as error:
            self._tell("held", f"{error}; reading from the URL until it does")
        except OSError as error:
            # A part of the path that is no folder, or one that this user may not write to, will not change by itself.
            denied = error.errno in (errno.EACCES, errno.EPERM) and not os.access(self.folder, os.W_OK | os.X_OK)
            if error.errno in CANNOT_BE or denied:
                raise InputError(
                    f"--data.cache {self.folder}: cannot be written ({error.strerror}); give another folder"
                ) from None
            self._state["paused until"] = time.monotonic() + SECONDS_WITHOUT
            space = "; free space, or give a smaller --data.cache-size" if error.errno in NO_SPACE else ""
            self._tell("disk", f"cannot be written ({error.strerror or error}); reading from the URL without it{space}")
        return None

    def drop(self, source: RemoteFolder, shard: dict) -> None:
        """Forget a shard, because what was read of it is wrong. The next read fetches it again."""
        with contextlib.suppress(OSError):
            self._path(source, shard).unlink()

    def _path(self, source: RemoteFolder, shard: dict) -> Path:
        name = hashlib.sha256(f"{source.where(shard['name'])}\n{shard['sha256']}".encode()).hexdigest()
        return self.folder / (name + SHARD)

    def _tell(self, kind: str, what: str) -> None:
        """One line on stderr, once for each kind."""
        if kind not in self._state:
            self._state[kind] = time.monotonic()
            sys.stderr.write(one_line(f"warning: --data.cache {self.folder}: {what}") + "\n")
            sys.stderr.flush()

    def _read(self, path: Path, shard: dict, start: int, end: int) -> bytes | None:
        """Bytes of a shard that is here; None where it is not, or not as it should be: then it is removed."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # From here on another process may remove the file: its bytes can be read nevertheless.
            if os.fstat(descriptor).st_size == shard["bytes"]:
                with contextlib.suppress(OSError):  # another user's
                    os.utime(descriptor)
                with contextlib.suppress(OSError):  # a disk that fails
                    data = os.pread(descriptor, end - start, start)
                    if len(data) == end - start:
                        return data
        finally:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def _fetch(self, source: RemoteFolder, shard: dict, start: int, end: int) -> bytes | None:
        """Bring a shard here, or wait until the process that does so has; then the bytes. None without room.

        Raises OSError where the disk fails, HeldError where another process does not answer.
        """
        if shard["bytes"] > self.max_bytes:
            raise InputError(
                f"{source.where(shard['name'])} has {shard['bytes']} bytes, the cache {self.max_bytes}: give a larger "
                "--data.cache-size"
            )
        path = self._path(source, shard)
        partial = path.with_suffix(PARTIAL)
        self.folder.mkdir(parents=True, exist_ok=True)
        seconds = source.patience.seconds
        with held(partial, seconds, f"the process that fetches {source.where(shard['name'])}") as file:
            try:
                data = self._read(path, shard, start, end)  # another process has fetched it
                if data is not None or not self._make_room(file, shard["bytes"], seconds):
                    return data
                _download(file, source, shard)
                os.fsync(file)
                # Read here, because another process may drop it as soon as it has its final name.
                data = os.pread(file, end - start, start)
                self._rename(partial, path, seconds)
                return data
            finally:
                if is_at(file, partial):  # else it has its final name, and another process's file may have this one
                    partial.unlink(missing_ok=True)

    def _rename(self, partial: Path, path: Path, seconds: float) -> None:
        # Under the lock, so that who counts the files meanwhile does not miss this one.
        with contextlib.suppress(FileNotFoundError):  # the folder was emptied by hand
            try:
                with held(self.folder / LOCK, seconds, "a process"):
                    partial.rename(path)
            except HeldError:
                partial.rename(path)

    def _make_room(self, file: int, num_bytes: int, seconds: float) -> bool:
        """Drop shards until `num_bytes` fit, and take that room on the disk for `file`, a temporary one."""
        with held(self.folder / LOCK, seconds, "a process that makes room for a shard"):
            shards, used = [], 0
            for path, found in _files_of(self.folder):
                if path.suffix == PARTIAL and found.st_ino != os.fstat(file).st_ino:
                    used += 0 if clear_away(path) else found.st_size
                elif path.suffix == SHARD:
                    used += found.st_size
                    shards.append((found.st_mtime_ns, path, found.st_size))
            shards.sort(reverse=True)
            while used + num_bytes > self.max_bytes and shards:
                used -= _drop_last(shards)
            if used + num_bytes > self.max_bytes:
                return False
            os.ftruncate(file, 0)
            while True:
                try:
                    os.posix_fallocate(file, 0, num_bytes)
                    return True
                except OSError as error:
                    # The disk is smaller than the cache may become: older shards give way, if that is enough.
                    disk = os.statvfs(self.folder)
                    free = disk.f_bavail * disk.f_frsize + sum(size for _, _, size in shards)
                    if error.errno not in NO_SPACE or not shards or free < num_bytes:
                        raise
                    _drop_last(shards)


def _files_of(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files of a folder; not those that other processes remove meanwhile."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                yield Path(entry.path), entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


def _drop_last(shards: list[tuple[int, Path, int]]) -> int:
    """Remove the last of `shards` from the list and the disk. Returns its size in bytes."""
    _, path, size = shards.pop()
    path.unlink(missing_ok=True)
    return size


def _download(file: int, source: RemoteFolder, shard: dict) -> None:
    """Write a whole shard into `file`. Raises InputError where its SHA-256 is not the index's, tried as often as
    anything is."""
    name, num_bytes = shard["name"], shard["bytes"]
    for _ in range(source.patience.attempts):
        digest = hashlib.sha256()
        try:
            for start in range(0, num_bytes, CHUNK_BYTES):
                data = source.request_range(name, start, min(start + CHUNK_BYTES, num_bytes))
                digest.update(data)
                _write(file, data, start)
        except NoRangesError:
            digest = _download_at_once(file, source, shard)
        if digest.hexdigest() == shard["sha256"]:
            return
    raise InputError(
        f"{source.where(name)}: its SHA-256 is {digest.hexdigest()}, the index says {shard['sha256']}, after "
        f"{source.patience.attempts} tries; check that index.json belongs to these shards"
    )


def _download_at_once(file: int, source: RemoteFolder, shard: dict) -> hashlib._Hash:
    """Write a complete shard into `file` in one request, for servers without ranges. Returns its SHA-256."""
    at, faults = 0, []

    def take(piece: bytes) -> None:
        nonlocal at
        try:
            _write(file, piece, at)
        except OSError as error:
            faults.append(error)
            raise
        digest.update(piece)
        at += len(piece)

    def copy() -> None:
        nonlocal at, digest
        at, digest = 0, hashlib.sha256()
        try:
            source.copy_whole(shard["name"], shard["bytes"], take)
        except OSError:
            if not faults:
                raise
            return  # it is the disk that fails: no reason to ask the server again
        if at != shard["bytes"]:
            raise AnswerError(f"{at} bytes came, {shard['bytes']} were asked for", is_content=True)

    digest = hashlib.sha256()
    source.retry(source.where(shard["name"]), copy)
    if faults:
        raise faults[0]
    return digest


def _write(file: int, data: bytes, at: int) -> None:
    """Write all of `data`: a disk that becomes full takes a part without a word."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
