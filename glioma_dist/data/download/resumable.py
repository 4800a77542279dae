"""Download one file so that a killed download continues where it stopped, and verify what came.

The bytes lie under a temporary name until all are there and verified. Beside them a note says of which file they are:
URL, size, and the server's ETag or date. A server is asked for the rest only if the file is still the same
(`If-Range`); a server that answers with the complete file starts it from the beginning.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glioma_dist import files
from glioma_dist.data.download import web
from glioma_dist.data.download.published import MAX_FILE_BYTES, PublishedFile
from glioma_dist.data.shards.bodies import AnswerError
from glioma_dist.data.shards.storage import MAX_RETRY_AFTER, Patience, pause
from glioma_dist.errors import InputError, UnavailableError, one_line, one_sentence

MAX_RECORD_BYTES = 2**24
MAX_NOTE_BYTES = 2**16
PIECE_BYTES = 2**20
REMEDY = "ask whoever keeps the server, or give another one by --url"
Report = Callable[[int, int], None]
"""Receives the number of bytes that are here, and of all."""


@dataclass(frozen=True)
class Arrived:
    """A file that came completely."""

    num_bytes: int
    sha256: str
    md5: str


class Retries:
    """Counts the tries of a request. The count starts at 0 again whenever more of the file came than ever before."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience = url, patience
        self.attempts, self.furthest, self.wait = 0, 0, patience.wait_seconds

    def note_progress(self, num_bytes: int) -> None:
        """Of a file, so many bytes are here."""
        if num_bytes >= self.furthest + web.MIN_BYTES:
            self.attempts, self.furthest, self.wait = 0, num_bytes, self.patience.wait_seconds

    def after(self, error: Exception) -> None:
        """Wait before the next try. Raises InputError or UnavailableError where there is none."""
        self.attempts += 1
        text = web.words(error, self.patience.seconds)
        is_content = getattr(error, "is_content", False)
        is_untrusted = "CERTIFICATE_VERIFY_FAILED" in text
        if getattr(error, "is_final", False) or is_untrusted:
            advice = REMEDY if is_content else "is the URL right, and may this machine read it?"
            if is_untrusted:
                advice = "where a proxy has a certificate of its own, name it by SSL_CERT_FILE"
            raise InputError(one_sentence(f"{self.url}: cannot be downloaded ({text}); {advice}")) from None
        if self.attempts >= self.patience.attempts:
            text = f"{self.url}: cannot be downloaded after {self.attempts} tries (the last: {text})"
            if is_content:
                raise InputError(one_sentence(f"{text}; {REMEDY}")) from None
            if "gaierror" in text:
                text += "; is the host's name right, is there a network, or is a proxy needed (https_proxy)?"
            raise UnavailableError(
                one_sentence(f"{text}; run the same command later: it continues from there")
            ) from None
        time.sleep(pause(self.wait, min(getattr(error, "retry_after", 0.0), MAX_RETRY_AFTER)))
        self.wait *= 2


def read_json(url: str, patience: Patience) -> Any:
    """The JSON at a URL. Raises InputError where it cannot be had, UnavailableError where it may be another time."""
    retries = Retries(url, patience)
    while True:
        try:
            answer = web.ask(url, {}, patience.seconds)
            with answer.response:
                data = b""
                for piece in answer.pieces(patience.seconds):
                    data += piece
                    if len(data) > MAX_RECORD_BYTES:
                        raise AnswerError(f"more than {MAX_RECORD_BYTES} bytes", is_final=True, is_content=True)
            if answer.total is not None and len(data) != answer.total:
                raise AnswerError(f"the connection ended after {len(data)} of {answer.total} bytes")
        except web.FAILURES as error:
            retries.after(error)
            continue
        return files.parse_json(data, url)


def measure(file: PublishedFile, patience: Patience) -> int:
    """The size of a file in bytes, as its server tells it. Raises as `read_json`."""
    retries = Retries(file.url, patience)
    while True:
        try:
            answer = web.ask(file.url, {"Range": "bytes=0-0"}, patience.seconds)
            answer.response.close()
            return _check_size(file, answer.total)
        except web.FAILURES as error:
            retries.after(error)


class Resumable:
    """The temporary copy of a file, in `folder`."""

    def __init__(self, file: PublishedFile, folder: Path, patience: Patience) -> None:
        self.file, self.patience = file, patience
        name = hashlib.sha256(f"{file.name}".encode()).hexdigest()[:16]
        self.partial, self.note = folder / f"{name}.partial", folder / f"{name}.json"
        self.size, self.validator = 0, None

    def num_bytes_here(self) -> int:
        """How many bytes of the file came before, in this process or another."""
        try:
            found = files.read_json(self.note, MAX_NOTE_BYTES)
            here = os.stat(self.partial).st_size
        except (InputError, OSError):
            return 0
        if not isinstance(found, dict) or found.get("url") != self.file.url:
            return 0
        size, validator = found.get("num_bytes"), found.get("validator")
        if type(size) is not int or not 0 < size <= MAX_FILE_BYTES or not isinstance(validator, str | None):
            return 0
        # Without a tag or a date only a checksum can tell whether the rest is of the same file.
        if (validator is None and self.file.md5 is None) or here > size or size != (self.file.num_bytes or size):
            return 0
        self.size, self.validator = size, validator
        return here

    def fetch(self, report: Report) -> Arrived:
        """Download what is missing, then verify all. Raises InputError where the file cannot be had or is not the
        published one, or the disk is full; UnavailableError where the server does not answer."""
        retries = Retries(self.file.url, self.patience)
        while True:
            here = self.num_bytes_here()
            try:
                if not here or here < self.size:
                    self._fetch_rest(here, report, retries)
                break
            except web.FAILURES as error:
                retries.after(error)
        return self._verify()

    def remove(self) -> None:
        """Forget what came."""
        files.remove_quietly(self.note)
        files.remove_quietly(self.partial)

    def _fetch_rest(self, here: int, report: Report, retries: Retries) -> None:
        headers = {"Range": f"bytes={here}-{self.size - 1}"} if here else {}
        if here and self.validator:
            headers["If-Range"] = self.validator
        try:
            answer = web.ask(self.file.url, headers, self.patience.seconds)
        except AnswerError as error:
            if here and error.is_content:  # the file has become shorter
                self.remove()
                raise AnswerError(str(error)) from None
            raise
        with answer.response:
            is_same = answer.total == self.size and (not self.validator or answer.validator in (None, self.validator))
            if answer.response.status == web.PARTIAL_CONTENT and (answer.start != here or not is_same):
                self.remove()
                raise AnswerError(f"sent bytes from {answer.start} on of a file of {answer.total} bytes, another one")
            if answer.response.status == web.OK:
                here = 0
                self.size, self.validator = _check_size(self.file, answer.total), answer.validator
            self._write(answer, here, report, retries)

    def _write(self, answer: web.Answer, here: int, report: Report, retries: Retries) -> None:
        if here == 0:
            files.remove_quietly(self.partial)
            note = {"url": self.file.url, "num_bytes": self.size, "validator": self.validator}
            files.write_json_atomically(self.note, note)
        try:
            file = open(self.partial, "ab", buffering=0)  # noqa: SIM115 (its errors are not the network's)
        except OSError as error:
            raise files.cannot_write(self.partial, error) from None
        with file:
            for piece in answer.pieces(self.patience.seconds):
                _write_all(file, piece[: self.size - here], self.partial)
                here += len(piece)
                report(min(here, self.size), self.size)
                retries.note_progress(here)
                if here >= self.size:
                    break
        if here < self.size:
            raise AnswerError(f"the connection ended after {here} of {self.size} bytes")

    def _verify(self) -> Arrived:
        arrived = hash_file(self.partial)
        wrong = None
        if self.file.md5 is not None and arrived.md5 != self.file.md5:
            wrong = (
                f"its MD5 sum is {arrived.md5}, the published one {self.file.md5}: damaged on the way, or changed there"
            )
        elif not _looks_right(self.file, self.partial):
            kind = "archive" if self.file.is_archive else "JSON file"
            wrong = f"what came is no complete {kind}: does a login page or a proxy answer in its place?"
        if wrong is not None:
            self.remove()
            raise InputError(
                one_line(
                    f"{self.file.url}: {wrong}; it is removed: run the same command again, and if it stays, {REMEDY}"
                )
            )
        return arrived


def hash_file(path: Path) -> Arrived:
    """Size and checksums of a file. Raises InputError where it cannot be read."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    try:
        with files.open_plain(path) as file:
            while piece := file.read(PIECE_BYTES):
                sha256.update(piece)
                md5.update(piece)
            num_bytes = file.tell()
    except OSError as error:
        raise files.cannot_read(path, error) from None
    return Arrived(num_bytes, sha256.hexdigest(), md5.hexdigest())


def _check_size(file: PublishedFile, total: int | None) -> int:
    if total is None:
        raise AnswerError(
            "its size is not told, so a truncated file could not be noticed", is_final=True, is_content=True
        )
    if file.num_bytes is not None and total != file.num_bytes:
        raise AnswerError(f"has {total} bytes, and the list of files says {file.num_bytes}", is_content=True)
    if not 0 < total <= MAX_FILE_BYTES:
        raise AnswerError(f"has {total} bytes; 1 to {MAX_FILE_BYTES} are taken", is_content=True)
    return total


def _write_all(file: Any, piece: bytes, path: Path) -> None:
    view = memoryview(piece)
    try:
        while view:  # unbuffered, and a disk that becomes full takes a part
            view = view[file.write(view) :]
    except OSError as error:
        raise files.cannot_write(path, error) from None


def _looks_right(file: PublishedFile, path: Path) -> bool:
    """Whether the first and the last bytes are those of its kind, which shows pages and cuts without a checksum."""
    with files.open_plain(path) as opened:
        head = opened.read(64)
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - 64))
        tail = opened.read()
    if file.name.lower().endswith(".zip"):
        return head.startswith(b"PK")
    if file.name.lower().endswith(".json"):
        return (head.lstrip()[:1], tail.rstrip()[-1:]) in ((b"{", b"}"), (b"[", b"]"))
    return True
