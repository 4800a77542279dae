"""One request over HTTP with the standard library, bounded in time and in bytes. Proxies come from the environment."""

from __future__ import annotations

import asyncio
import http.client
import io
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import glioma_dist
from glioma_dist.data.shards.bodies import PIECE_BYTES, AnswerError
from glioma_dist.data.shards.http_transfer import (
    MAX_REDIRECTS,
    OK,
    PARTIAL_CONTENT,
    REDIRECTS,
    check_redirect,
    status_error,
)

MIN_BYTES = 2**14
"""That come within the seconds of a try, or the server counts as silent."""
HEADERS = {"User-Agent": f"glioma-dist/{glioma_dist.__version__}", "Accept-Encoding": "identity"}
FAILURES = (OSError, http.client.HTTPException, AnswerError)
"""What a request, or reading its body, fails with. TimeoutError and URLError are OSErrors."""


@dataclass(frozen=True)
class Answer:
    """The head of an answer. The body is bytes `start` to `total` of a file; total: None where nobody tells.

    validator: the ETag, or else the date, by which a server knows that a file is the same; None where it sends neither.
    """

    response: Any
    start: int
    total: int | None
    validator: str | None

    def pieces(self, seconds: float) -> Iterator[bytes]:
        """The body as it comes. Raises FAILURES: OSError where fewer than MIN_BYTES come within `seconds`."""
        # Only below http.client can this be told: it reads the sizes of chunks, and what follows the last one, as
        # lines, and a line that comes byte by byte never lets a read time out.
        if self.response.fp is not None:  # an empty body is read already
            self.response.fp = io.BufferedReader(_Paced(self.response.fp, seconds))
        while piece := self.response.read1(PIECE_BYTES):
            yield piece


class _Paced(io.RawIOBase):
    """A buffered connection, each read of which raises TimeoutError where it is too slow."""

    def __init__(self, connection: Any, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._since, self._num_bytes = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        now = time.monotonic()
        if now - self._since > self._seconds:
            if self._num_bytes < MIN_BYTES:
                raise TimeoutError(f"only {self._num_bytes} bytes came within {self._seconds:g} s")
            self._since, self._num_bytes = now, 0
        # At most one read of the socket.
        data = self._connection.read1(len(buffer))
        buffer[: len(data)] = data
        self._num_bytes += len(data)
        return len(data)

    def close(self) -> None:
        self._connection.close()
        super().close()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows few redirects, and only those that `check_redirect` allows."""

    max_redirections = MAX_REDIRECTS
    max_repeats = MAX_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            # On the thread of a request, which has no loop of its own.
            asyncio.run(check_redirect(_parts(req.full_url), _parts(newurl)))
        except BaseException:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _parts(url: str) -> SimpleNamespace:
    parts = urlsplit(url)
    return SimpleNamespace(scheme=parts.scheme, host=parts.hostname, port=parts.port)


def ask(url: str, headers: dict[str, str], seconds: float) -> Answer:
    """Send a request and read the head of its answer, redirects included, within `seconds`. The caller closes the
    response. Raises FAILURES; AnswerError for a status that is neither 200 nor 206."""
    response = _within(seconds, lambda: _open(url, headers, seconds))
    try:
        return _read_head(response)
    except BaseException:
        response.close()
        raise


def words(error: BaseException, seconds: float) -> str:
    """What went wrong, for a user."""
    cause = getattr(error, "reason", None)
    if isinstance(cause, BaseException):  # of a URLError
        error = cause
    if isinstance(error, AnswerError):
        return str(error)
    if isinstance(error, TimeoutError):
        return str(error) if str(error).startswith("only") else f"no answer within {seconds:g} s"
    return f"{type(error).__name__}: {error}"[:200]


def _open(url: str, headers: dict[str, str], seconds: float) -> Any:
    opener = urllib.request.build_opener(_Redirects())
    try:
        return opener.open(urllib.request.Request(url, headers=HEADERS | headers), timeout=seconds)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in REDIRECTS:
                to = error.headers.get("Location", "nowhere")[:80]
                text = f"redirects to {to}, which is not followed, or redirects more than {MAX_REDIRECTS} times"
                raise AnswerError(text, is_final=True) from None
            raise status_error(error.code, str(error.reason), error.headers.get("Retry-After", "")) from None
    except ValueError as error:  # a redirect to what is no URL, among others
        raise AnswerError(f"an answer that is no HTTP ({error})"[:200], is_final=True) from None


def _read_head(response: Any) -> Answer:
    headers = response.headers
    if response.status not in (OK, PARTIAL_CONTENT):
        raise status_error(response.status, str(response.reason), "")
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise AnswerError(f"sent compressed ({encoding[:20]}) although plain bytes were requested", is_final=True)
    tag, date = headers.get("ETag", "").strip(), headers.get("Last-Modified", "").strip()
    # A weak tag says that two files mean the same, not that their bytes are equal.
    validator = tag if re.fullmatch(r'"[^"]+"', tag) else date or None
    if response.status == PARTIAL_CONTENT:
        told = re.fullmatch(r"\s*bytes\s+(\d{1,18})-\d{1,18}/(\d{1,18}|\*)\s*", headers.get("Content-Range", ""))
        if told is None:
            raise AnswerError("a part of the file without a Content-Range")
        return Answer(response, int(told[1]), None if told[2] == "*" else int(told[2]), validator)
    size = headers.get("Content-Length", "")
    return Answer(response, 0, int(size) if re.fullmatch(r"\d{1,18}", size) else None, validator)


def _within(seconds: float, function: Any) -> Any:
    """What `function` returns or raises; TimeoutError where it takes longer: a head can come byte by byte, and the name
    of a host be looked up for minutes. The thread that is given up does not keep the process from ending."""
    answers: queue.SimpleQueue = queue.SimpleQueue()
    lock, is_over = threading.Lock(), []

    def work() -> None:
        try:
            value, error = function(), None
        except BaseException as caught:
            value, error = None, caught
        with lock:
            if not is_over:
                answers.put((value, error))
            elif value is not None:
                value.close()

    threading.Thread(target=work, daemon=True, name="request").start()
    try:
        value, error = answers.get(timeout=seconds)
    except BaseException as ended:  # too late, or a signal
        with lock:
            is_over.append(True)
        if not answers.empty() and (late := answers.get()[0]) is not None:
            late.close()
        if isinstance(ended, queue.Empty):
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        raise
    if error is not None:
        raise error
    return value
