"""Shards from URLs kept whole on a local disk, for all processes of a machine together.

A shard is written under a temporary name, which its writer holds locked; when its SHA-256 is right it is renamed to
its final one, which is made of the full URL and of that SHA-256. The least recently used are dropped to make room.
A process that is killed leaves at most a temporary file that nobody holds, and the next one clears it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glioma_dist.data.storage import RemoteFolder, read_file_range
from glioma_dist.errors import InputError

CHUNK_BYTES = 2**23
"""Of a shard, asked for at a time: each has its own tries and its own end in time."""
SHARD, PARTIAL = ".tar", ".partial"


@dataclass(frozen=True)
class ShardCache:
    """A folder with at most `max_bytes` of shards. Any number of processes may use it at once; it should lie on a
    disk of this machine, for locks over a network are not to be relied on."""

    folder: Path
    max_bytes: int

    def read_range(self, source: RemoteFolder, shard: dict, start: int, end: int) -> bytes | None:
        """Bytes `start` up to `end` of a shard, `shard` being its entry in the index; fetches it if need be.

        None where other processes' shards, which are on their way, leave no room for it. Raises InputError where it
        cannot be had, is not what the index says, or is larger than the cache.
        """
        path = self.folder / (self._name(source, shard) + SHARD)
        # Between fetching and reading another process may drop it to make room: then it is fetched again.
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if path.stat().st_size != shard["bytes"]:
                    path.unlink()
                os.utime(path)
                return read_file_range(path, start, end)
            if not self._fetch(source, shard):
                return None
        return None

    def _name(self, source: RemoteFolder, shard: dict) -> str:
        return hashlib.sha256(f"{source.where(shard['name'])}\n{shard['sha256']}".encode()).hexdigest()

    def _fetch(self, source: RemoteFolder, shard: dict) -> bool:
        """Bring a shard here, or wait until the process that does so has. False where there is no room."""
        if shard["bytes"] > self.max_bytes:
            raise InputError(
                f"{source.where(shard['name'])} has {shard['bytes']} bytes, the cache {self.max_bytes}: give a larger "
                "--data.cache-size"
            )
        name = self._name(source, shard)
        path, partial = self.folder / (name + SHARD), self.folder / (name + PARTIAL)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _held(partial) as file:
                if path.exists():
                    partial.unlink()
                    return True
                if not self._make_room(file, shard["bytes"]):
                    partial.unlink()
                    return False
                try:
                    _download(file, source, shard)
                except BaseException:
                    partial.unlink()
                    raise
                os.fsync(file)
                partial.rename(path)
                return True
        except OSError as error:
            raise InputError(
                f"--data.cache {self.folder}: cannot be written ({error.strerror}); is there space? Give another "
                "folder, or a smaller --data.cache-size"
            ) from None

    def _make_room(self, file: int, num_bytes: int) -> bool:
        """Drop shards until `num_bytes` fit, and take that room on the disk for `file`, a temporary one."""
        with _held(self.folder / ".lock"):
            shards, used = [], 0
            for entry in os.scandir(self.folder):
                path, facts = Path(entry.path), entry.stat()
                if path.suffix == PARTIAL and facts.st_ino != os.fstat(file).st_ino:
                    used += 0 if _clear_away(path) else facts.st_size
                elif path.suffix == SHARD:
                    used += facts.st_size
                    shards.append((facts.st_mtime_ns, path, facts.st_size))
            for _, path, size in sorted(shards):
                if used + num_bytes <= self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                used -= size
            if used + num_bytes > self.max_bytes:
                return False
            os.ftruncate(file, 0)
            os.posix_fallocate(file, 0, num_bytes)
            return True


def _download(file: int, source: RemoteFolder, shard: dict) -> None:
    """Write a whole shard into `file`. Raises InputError where its SHA-256 is not the index's, tried as often as
    anything is."""
    for _ in range(source.patience.attempts):
        digest = hashlib.sha256()
        for start in range(0, shard["bytes"], CHUNK_BYTES):
            data = source.read_range(shard["name"], start, min(start + CHUNK_BYTES, shard["bytes"]))
            digest.update(data)
            os.pwrite(file, data, start)
        if digest.hexdigest() == shard["sha256"]:
            return
    raise InputError(
        f"{source.where(shard['name'])}: its SHA-256 is {digest.hexdigest()}, the index says {shard['sha256']}, after "
        f"{source.patience.attempts} tries; is the index that of these shards?"
    )


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int]:
    """The file `path`, made if need be, and locked: by nobody else, and until this process lets go or ends."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it before may have renamed or removed it: then this is a lock on nothing.
            if path.exists() and path.stat().st_ino == os.fstat(file).st_ino:
                yield file
                return
        finally:
            os.close(file)


def _clear_away(partial: Path) -> bool:
    """Remove a temporary file that nobody holds. Returns whether it is gone."""
    try:
        file = os.open(partial, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        partial.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
