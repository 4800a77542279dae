"""Where shards lie: a local folder or a URL, both read by byte range.

URLs are read through fsspec, and only those of the schemes below: what a config or an index names is never run as a
command, and nothing that is read is unpickled. Every try at a URL has an end in time, and so has their number.
"""

from __future__ import annotations

import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glioma_dist.errors import InputError

SCHEMES = ("s3", "gs", "az", "hf", "http", "https")
HTTP_TIMEOUT, HTTP_TOO_MANY = 408, 429
"""The two answers of the 400s that may be others the next time."""

Accept = Callable[[bytes], bool]
"""Whether bytes are those that were asked for, as far as a checksum tells."""


@dataclass(frozen=True)
class Patience:
    """How long a URL is tried: `attempts` times, `seconds` at most each; before the second try it waits
    `wait_seconds`, before each further one twice as long, give or take a half."""

    attempts: int = 5
    seconds: float = 30.0
    wait_seconds: float = 0.5


def is_url(text: str) -> bool:
    """Whether a user means a URL, though maybe one that is not allowed."""
    return "://" in text or "::" in text or text.startswith("pipe:")


def check_url(url: str) -> None:
    """Raises InputError for a URL of a scheme that is not allowed, of several joined ones, or with what is secret."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "::" in url or not re.fullmatch(r"[a-z0-9]+://[^\s\x00-\x1f]+", url):
        raise InputError(
            f"{url!r} is no URL that shards are read from: give a folder, or a URL that begins with one of "
            f"{', '.join(scheme + '://' for scheme in SCHEMES)}"
        )
    if re.search(r"[?#]", url) or "@" in url.split("/")[2]:
        raise InputError(
            f"{url.partition('://')[0]}://…: a URL with a user, a query or a fragment would be written to config.json "
            "as it is; give the plain URL, and credentials through the environment"
        )


class LocalFolder:
    """Files of a folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def where(self, name: str) -> str:
        """A file as users know it."""
        return str(self.folder / name)

    def read_all(self, name: str, accept: Accept | None = None) -> bytes:
        """A whole file. `accept` is not asked: what a local file says is looked at by its reader."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise InputError(f"{self.where(name)}: cannot be read ({error.strerror}); convert again") from None

    def read_range(self, name: str, start: int, end: int, accept: Accept | None = None) -> bytes:
        """Bytes `start` up to `end` of a file. Raises InputError where they are not all there."""
        path = self.folder / name
        try:
            data = read_file_range(path, start, end)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); convert again") from None
        if len(data) != end - start:
            found = start + len(data)
            raise InputError(f"{path}: {found} bytes found, at least {end} expected: it is truncated; convert again")
        return data


class RemoteFolder:
    """Files below a URL. It keeps no connection, so it may be pickled to worker processes and survives a fork.

    Raises InputError for a URL that is not allowed, and where the library for its scheme is not installed.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        check_url(url)
        self.url = url.rstrip("/")
        self.patience = patience or Patience()
        try:
            self._file_system()
        except (ImportError, ValueError) as error:
            raise InputError(f"{self.url}: cannot be read here ({error}); pip install 'glioma-dist[cloud]'") from None

    def __str__(self) -> str:
        return self.url

    def where(self, name: str) -> str:
        """A file as users know it."""
        return f"{self.url}/{name}"

    def read_all(self, name: str, accept: Accept | None = None) -> bytes:
        """A whole file. Raises InputError where it cannot be had, or `accept` never takes it."""
        url = self.where(name)
        return self._insist(url, lambda: self._fetch(url, None, None), None, accept)

    def read_range(self, name: str, start: int, end: int, accept: Accept | None = None) -> bytes:
        """Bytes `start` up to `end` of a file, all of them and no others. Raises InputError where they cannot be
        had, or `accept` never takes them."""
        url = self.where(name)
        what = f"{url}: bytes {start} to {end}"
        return self._insist(what, lambda: self._fetch(url, start, end), end - start, accept)

    def _file_system(self) -> Any:
        # Asked for at every read: fsspec keeps one for each process, and knows when a process was forked.
        import fsspec

        return fsspec.filesystem(self.url.partition("://")[0])

    def _fetch(self, url: str, start: int | None, end: int | None) -> bytes:
        from fsspec.asyn import sync

        files, seconds = self._file_system(), self.patience.seconds
        if not files.async_impl:
            return _within(seconds, lambda: files.cat_file(url, start=start, end=end))
        # A request that takes too long is called off: left alone it would hold one of few connections.
        return sync(files.loop, files._cat_file, url, start=start, end=end, timeout=seconds)

    def _insist(self, what: str, read: Callable[[], bytes], num_bytes: int | None, accept: Accept | None) -> bytes:
        wait = self.patience.wait_seconds
        for attempt in range(self.patience.attempts):
            if attempt:
                # Uneven, so that a thousand processes that one server turned away do not all come back at once.
                time.sleep(wait * random.SystemRandom().uniform(0.5, 1.5))
                wait *= 2
            try:
                data = read()
            except Exception as error:
                # Each scheme's library raises its own.
                words = " ".join(str(error).split())[:200] or f"no whole answer within {self.patience.seconds:g} s"
                last = f"{type(error).__name__}: {words}"
                if _is_final(error):
                    raise InputError(
                        f"{what} cannot be read ({last}); is the URL right, and may you read it?"
                    ) from None
                continue
            if num_bytes is not None and len(data) != num_bytes:
                last = f"{len(data)} bytes came, {num_bytes} were asked for"
            elif accept is not None and not accept(data):
                last = "not the bytes that were written: cut short, or another SHA-256 than the index has"
            else:
                return data
        raise InputError(f"{what} cannot be read after {self.patience.attempts} tries (the last: {last}); try later")


def open_folder(folder: str | Path, patience: Patience | None = None) -> LocalFolder | RemoteFolder:
    """What a user named, a folder or a URL."""
    if isinstance(folder, str) and is_url(folder):
        return RemoteFolder(folder, patience)
    return LocalFolder(Path(folder))


def read_file_range(path: Path, start: int, end: int) -> bytes:
    """Bytes `start` up to `end` of a local file, or fewer where it is shorter. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), end - start, start)


def _is_final(error: Exception) -> bool:
    """Whether the same question would be answered the same again: it is not there, or not for us."""
    if isinstance(error, FileNotFoundError | PermissionError | ImportError):
        return True
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (HTTP_TIMEOUT, HTTP_TOO_MANY)


def _within(seconds: float, function: Callable[[], bytes]) -> bytes:
    """What `function` returns or raises; TimeoutError where it takes longer. A thread that is given up ends whenever
    its library lets go of it, and does not keep the process from ending."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put((function(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True).start()
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return value
