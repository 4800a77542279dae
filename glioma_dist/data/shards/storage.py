"""Where shards lie: a local folder or a URL, both read by byte range and with a bound.

URLs are read through fsspec, and only those of the schemes below: what a config or an index names is never run as a
command, and nothing that is read is unpickled. Every try at a URL has an end in time and in bytes, and so has their
number.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glioma_dist import files
from glioma_dist.data.shards.bodies import AnswerError, NoRangesError, Span, Take
from glioma_dist.data.shards.transfer import read_span, stream_span
from glioma_dist.data.shards.urls import check_url, is_url
from glioma_dist.errors import InputError, UnavailableError, one_line, one_sentence
from glioma_dist.extras import install_command

HTTP_TIMEOUT, HTTP_TOO_MANY = 408, 429
"""The two answers of the 400s that may be others the next time."""
MAX_RETRY_AFTER = 60.0
"""Seconds that a server may ask to wait before one further try."""
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError")
"""Errors of botocore: asking again does not bring them."""

NO_SUCH_PLACE = ("RepositoryNotFoundError", "GatedRepoError", "DisabledRepoError", "RevisionNotFoundError")
"""Errors of huggingface_hub: not a file is missing, but all."""
IMPOSSIBLE_NAMES = ("HfUriError", "HFValidationError", "ParamValidationError", "InvalidURL")
"""Errors of huggingface_hub, botocore and aiohttp: no store can have a place of this name."""

Accept = Callable[[bytes], bool]
"""Whether bytes are those that were asked for, as far as a checksum tells."""


@dataclass(frozen=True)
class Patience:
    """How long a URL is tried: `attempts` times, `seconds` at most each, and as long again for every 8 MiB that came;
    before the second try it waits `wait_seconds`, before each further one twice as long, give or take a half."""

    attempts: int = 5
    seconds: float = 30.0
    wait_seconds: float = 0.5


class LocalFolder:
    """Files of a folder on this machine."""

    remedy = "copy the folder again, or convert again"
    """What to do where the files are not what they should be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def where(self, name: str) -> str:
        """A file as users know it."""
        return str(self.folder / name)

    def read_all(self, name: str, max_bytes: int, accept: Accept | None = None) -> bytes:
        """All of a file of at most `max_bytes`. `accept` is not asked: what a local file says is looked at by its
        reader. Raises InputError."""
        return files.read_bytes(self.folder / name, max_bytes)

    def read_range(self, name: str, start: int, end: int, accept: Accept | None = None) -> bytes:
        """Bytes `start` up to `end` of a file. Raises InputError where they are not all there."""
        path = self.folder / name
        try:
            data = read_file_range(path, start, end)
        except OSError as error:
            raise files.cannot_read(path, error) from None
        if len(data) != end - start:
            found = start + len(data)
            raise InputError(f"{path}: {found} bytes found, at least {end} expected: it is truncated; {self.remedy}")
        return data


class RemoteFolder:
    """Files below a URL. It keeps no connection, so it may be pickled to worker processes and survives a fork.

    Raises InputError for a URL that is not allowed, and where the library for its scheme is not installed or has no
    credentials.
    """

    remedy = "upload the folder again, all of its files"

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        check_url(url)
        self.url = url.rstrip("/")
        self.patience = patience or Patience()
        try:
            self._file_system()
        except (ImportError, ValueError) as error:
            has_library = isinstance(error, ValueError)  # adlfs's, where no account is given
            install = f"run {install_command('cloud')}"
            advice = "set the store's credentials in the environment" if has_library else install
            url, said = one_line(self.url, 200), one_line(error, 150)
            raise InputError(f"{url}: cannot be read here ({said}); {advice}") from None

    def __str__(self) -> str:
        return self.url

    def where(self, name: str) -> str:
        """A file as users know it."""
        return f"{self.url}/{name}"

    def read_all(self, name: str, max_bytes: int, accept: Accept | None = None) -> bytes:
        """All of a file of at most `max_bytes`. Raises InputError where it cannot be had, or `accept` never takes it;
        UnavailableError where it may be another time."""
        url, seconds = self.where(name), self.patience.seconds
        pieces: list[bytes] = []

        def read() -> bytes:
            pieces.clear()
            stream_span(self._file_system(), url, Span(None, max_bytes), seconds, pieces.append)
            return b"".join(pieces)

        return self._insist(url, read, None, accept)

    def read_range(
        self, name: str, start: int, end: int, accept: Accept | None = None, may_skip: bool = False
    ) -> bytes:
        """Bytes `start` up to `end` of a file, all of them and no others.

        may_skip: read a file from its beginning, as far as need be, where the server knows no ranges. Raises as
        `read_all`, and InputError where a server without ranges would have to be read so.
        """
        try:
            return self.request_range(name, start, end, accept, may_skip)
        except NoRangesError:
            raise InputError(
                f"{self.where(name)}: the server answers with the complete file where a range of bytes is asked for, "
                "so each sample would cost a shard; train with --data.cache DIR, or copy the folder to this machine"
            ) from None

    def request_range(
        self, name: str, start: int, end: int, accept: Accept | None = None, may_skip: bool = False
    ) -> bytes:
        """As `read_range`; raises NoRangesError where the server knows no ranges."""
        if start == end:
            return b""
        url, span = self.where(name), Span(start, end, may_skip)
        what = f"{url}: bytes {start} to {end}"
        return self._insist(
            what, lambda: read_span(self._file_system(), url, span, self.patience.seconds), end - start, accept
        )

    def copy_whole(self, name: str, num_bytes: int, take: Take) -> None:
        """Hand the first `num_bytes` of a file to `take`, in pieces, in one try. Raises whatever is wrong with it."""
        span = Span(0, num_bytes, may_skip=True)
        stream_span(self._file_system(), self.where(name), span, self.patience.seconds, take)

    def stream_all(self, name: str, max_bytes: int, take: Take) -> None:
        """Hand all of a file of at most `max_bytes` to `take`, in pieces as they come, in one try. Raises whatever is
        wrong with it."""
        stream_span(self._file_system(), self.where(name), Span(None, max_bytes), self.patience.seconds, take)

    def read_optional(self, name: str, max_bytes: int) -> bytes | None:
        """`read_all`, or None where there is no such file."""
        url, seconds = self.where(name), self.patience.seconds

        def read() -> bytes | None:
            pieces: list[bytes] = []
            try:
                stream_span(self._file_system(), url, Span(None, max_bytes), seconds, pieces.append)
            except FileNotFoundError as error:
                if _is_all_missing(error.__cause__):
                    raise
                return None
            except AnswerError as error:
                if error.is_missing:
                    return None
                raise
            return b"".join(pieces)

        return self._insist(url, read, None, None)

    def retry(self, what: str, read: Callable[[], Any], num_bytes: int | None = None) -> Any:
        """What `read` returns, tried as often as a URL is. See `read_all`."""
        return self._insist(what, read, num_bytes, None)

    def _file_system(self) -> Any:
        # Asked for at every read: fsspec keeps one for each process, and knows when a process was forked.
        import fsspec

        return fsspec.filesystem(self.url.partition("://")[0])

    def _insist(self, what: str, read: Callable[[], Any], num_bytes: int | None, accept: Accept | None) -> Any:
        wait, asked_to_wait = self.patience.wait_seconds, 0.0
        for attempt in range(self.patience.attempts):
            if attempt:
                time.sleep(pause(wait, asked_to_wait))
                wait, asked_to_wait = wait * 2, 0.0
            try:
                data = read()
            except (NoRangesError, InputError):
                raise
            except Exception as error:
                # Each scheme's library raises its own.
                last, is_content = words_of(error, self.patience.seconds), is_content_fault(error)
                is_unknown_host = isinstance(getattr(error, "os_error", None), socket.gaierror)
                asked_to_wait = min(getattr(error, "retry_after", 0.0), MAX_RETRY_AFTER)
                if is_final(error):
                    advice = self.remedy if is_content else "is the URL right, and may you read it?"
                    raise InputError(one_sentence(f"{what} cannot be read ({last}); {advice}")) from None
                continue
            is_content, is_unknown_host = True, False
            if num_bytes is not None and len(data) != num_bytes:
                last = f"{len(data)} bytes came, {num_bytes} were asked for"
            elif accept is not None and not accept(data):
                last = "what came is damaged, cut short, or another file than the index describes"
            else:
                return data
        text = f"{what} cannot be read after {self.patience.attempts} tries (the last: {last})"
        if is_content:
            raise InputError(one_sentence(f"{text}; {self.remedy}"))
        advice = "; is the host's name right, and is there a network?" if is_unknown_host else "; try later"
        raise UnavailableError(one_sentence(text + advice))


def open_folder(folder: str | Path, patience: Patience | None = None) -> LocalFolder | RemoteFolder:
    """What a user named, a folder or a URL."""
    if isinstance(folder, str) and is_url(folder):
        return RemoteFolder(folder, patience)
    return LocalFolder(Path(folder))


def read_file_range(path: Path, start: int, end: int) -> bytes:
    """Bytes `start` up to `end` of a plain local file, or fewer where it is shorter.

    Raises OSError; InputError where it is a pipe, a device or a folder, which might never answer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        files.check_plain(path, os.fstat(descriptor))
        return os.pread(descriptor, end - start, start)
    finally:
        os.close(descriptor)


def pause(seconds: float, asked: float) -> float:
    """Seconds to wait before the next try. `asked`: what the server asks for, 0 for nothing.

    Uneven, so that a thousand processes that one server turned away do not all come back at once.
    """
    uneven = random.SystemRandom().uniform(0.5, 1.5)
    return max(seconds * uneven, asked * (0.75 + 0.5 * uneven))


def words_of(error: Exception, seconds: float) -> str:
    """What went wrong in one try, short enough for a message."""
    words = one_line(error, 200)
    if isinstance(error, AnswerError):
        return words
    return f"{type(error).__name__}: {words or f'no complete answer within {seconds:g} s'}"


def is_content_fault(error: Exception) -> bool:
    """Whether it is the file that is wrong, and not the service."""
    return getattr(error, "is_content", False) or type(error).__name__ == "FlexibleChecksumError"  # botocore's


def is_final(error: Exception) -> bool:
    """Whether the same question would be answered the same again: it is not there, or not for us."""
    if isinstance(error, FileNotFoundError | PermissionError | ImportError):
        return True
    if isinstance(error, AnswerError):
        return error.is_final
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (HTTP_TIMEOUT, HTTP_TOO_MANY):
        return True
    return type(error).__name__ in (*NO_CREDENTIALS, *IMPOSSIBLE_NAMES) or "Certificate" in type(error).__name__


def _is_all_missing(cause: BaseException | None) -> bool:
    """Whether a file is missing because its bucket or its repository is."""
    response = getattr(cause, "response", None)  # botocore's is a dict, huggingface_hub's is not
    told = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return told == "NoSuchBucket" or type(cause).__name__ in (*NO_SUCH_PLACE, *IMPOSSIBLE_NAMES)
