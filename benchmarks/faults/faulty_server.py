"""A web server on this machine that answers as badly as it is told to: files of a folder, or another server's.

    with serve(files_of(folder)) as server:
        server.faults = always("endless", ".tar")              # every answer about a tar
        server.faults = outage(5.0)                            # 503 for 5 s from the first request, then fine
        server.faults = lambda path, number: "short" if number == 0 else None
        ...                                                    # server.url, server.requests, server.bytes_sent

`FAULTS` lists every fault with what it does; tests are parametrised over it. Attributes of the server set their
details: `stall_seconds`, `retry_after`, `redirect_to`, `drip_seconds`, `drop_at` (bytes of a body before it ends or
stalls; half of it where None).
"""

from __future__ import annotations

import contextlib
import gzip
import re
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from glioma_dist.data.shards.storage import Patience

FAULTS = {
    "error": "500",
    "unavailable": "503",
    "unavailable-later": "503 with `Retry-After: {retry_after}`",
    "too-many": "429 with `Retry-After: {retry_after}`",
    "stall": "accepts the request and sends nothing for `stall_seconds`",
    "stall-body": "sends the headers and half of the body, then nothing for `stall_seconds`",
    "drip": "sends one byte of the body each `drip_seconds`",
    "refuse": "closes the connection without an answer",
    "drop": "the connection ends in the middle of the body",
    "short": "half of the bytes that were asked for, in good form",
    "empty": "no bytes, in good form",
    "long": "the bytes that were asked for and a mebibyte more, in good form",
    "changed": "one byte in the middle is another",
    "endless": "a body without a length and without an end",
    "endless-chunked": "the same in chunks",
    "endless-headers": "headers without an end",
    "huge-length": "a `Content-Length` of 2**62, and bytes as long as the client reads",
    "gzip": "the right bytes with `Content-Encoding: gzip`, whatever the client accepts",
    "gzip-bomb": "64 MiB of `Content-Encoding: gzip` that expand to 64 GiB of zeros",
    "no-range": "200 and the whole file, whatever range was asked for",
    "other-range": "206 and as many bytes from the beginning of the file, whatever range was asked for",
    "redirect": "302 to `redirect_to`, a URL or a path",
    "redirect-loop": "302 to the same path",
    "missing": "404",
    "forbidden": "403",
}
"""Every fault by name. In the texts, words in braces and backticks are attributes of the server."""
SILENT = {"stall", "stall-body", "drip"}
"""Faults that only the client's bound on time ends."""
Fault = str | None
PIECE = bytes(2**16)
Answer = tuple[int, dict[str, str], bytes]


class FaultyServer(ThreadingHTTPServer):
    """`faults(path, number)` says what is wrong with the answer to request number `number`, from 0, for a path;
    `requests` lists paths and ranges in the order in which they came; `headers` their headers; `bytes_sent` counts
    bytes of bodies that the system took for sending, whether the client read them or not."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[str, str, dict], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.faults: Callable[[str, int], Fault] = lambda path, number: None
        self.stall_seconds: float = 30
        self.drip_seconds: float = 0.1
        self.drop_at: int | None = None
        self.retry_after: str = "1"
        self.redirect_to = "/"
        self.requests: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.bytes_sent = 0
        self.ended = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def note(self, path: str, headers: dict) -> Fault:
        with self.lock:
            number = sum(path == other for other, _ in self.requests)
            self.requests.append((path, headers.get("Range")))
            self.headers.append(headers)
        fault = self.faults(path, number)
        assert fault is None or fault in FAULTS, fault
        return fault

    def handle_error(self, *_: object) -> None:
        """Clients that went away are what the tests want."""


def always(fault: Fault, ending: str = "") -> Callable[[str, int], Fault]:
    """`fault` in each answer about a path that ends with `ending`."""
    return lambda path, number: fault if path.endswith(ending) else None


def first(fault: Fault, ending: str = "", count: int = 1) -> Callable[[str, int], Fault]:
    """`fault` in the first `count` answers about each path that ends with `ending`."""
    return lambda path, number: fault if path.endswith(ending) and number < count else None


def patience_for(fault: Fault, attempts: int = 2) -> Patience:
    """Little time where a fault is silent, as all of it is waited for. Much where something answers: a slow machine is
    not taken for a fault."""
    return Patience(attempts, seconds=1.0 if fault in SILENT else 10.0, wait_seconds=0.01)


def outage(seconds: float, fault: Fault = "unavailable", after: int = 0) -> Callable[[str, int], Fault]:
    """`fault` in each answer for `seconds` from the first request after `after` good ones, then none."""
    start: list[float] = []
    served = [0]

    def faults(path: str, number: int) -> Fault:
        served[0] += 1
        if served[0] <= after:
            return None
        start.append(time.monotonic())
        return fault if start[-1] - start[0] < seconds else None

    return faults


@contextlib.contextmanager
def serve(answer: Callable[[str, str, dict], Answer]) -> Iterator[FaultyServer]:
    """A server on a thread, for as long as the context stands."""
    server = FaultyServer(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def files_of(folder: Path) -> Callable[[str, str, dict], Answer]:
    """Answers with the files of a folder, and with the range of them that is asked for."""

    def answer(method: str, path: str, headers: dict) -> Answer:
        file = folder / path.lstrip("/")
        if not file.is_file():
            return 404, {}, b"no such file"
        data = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
        if not asked:
            return 200, {"Accept-Ranges": "bytes"}, data
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        if first >= len(data):
            return 416, {}, b""
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]

    return answer


def server_at(url: str) -> Callable[[str, str, dict], Answer]:
    """Answers with what another server answers to reading requests."""

    def answer(method: str, path: str, headers: dict) -> Answer:
        request = urllib.request.Request(url + path, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.status, dict(reply.headers), reply.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    return answer


def gzip_pieces() -> Iterator[bytes]:
    """A gzip stream of 64 GiB of zeros, some 64 MiB long. After a full flush the same input gives the same bytes."""
    packer, zeros = zlib.compressobj(9, zlib.DEFLATED, 31), bytes(2**20)
    start, again = (packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    yield start
    for _ in range(2**10):
        yield again * 2**6


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        headers = dict(self.headers)
        fault = self.server.note(self.path, headers)
        if fault in ("refuse", "endless-headers"):
            self._answer_without_headers(fault)
            return
        if fault in ("no-range", "other-range"):
            asked = headers.pop("Range", "")
        status, head, body = self.server.answer(self.command, self.path, headers)
        if fault == "other-range" and (span := re.fullmatch(r"bytes=(\d+)-(\d+)", asked)):
            total, size = len(body), int(span[2]) - int(span[1]) + 1
            status, body = 206, body[:size]
            head = {"Content-Range": f"bytes 0-{len(body) - 1}/{total}"}
        if fault == "stall":
            self.server.ended.wait(self.server.stall_seconds)
        if fault in _STATUS:
            status, head, body = _STATUS[fault], {}, b"out of order"
            if fault in ("unavailable-later", "too-many"):
                head["Retry-After"] = self.server.retry_after
            if status == 302:
                head["Location"] = self.path if fault == "redirect-loop" else self.server.redirect_to
        elif fault in _BODIES:
            body = _BODIES[fault](body)
            head |= {"Content-Encoding": "gzip"} if fault == "gzip" else {}
        self._send(fault, status, head, body)

    do_HEAD = do_GET  # noqa: N815

    def _send(self, fault: Fault, status: int, head: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in head.items():
            if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        if fault in _STREAMS:
            self._stream(fault)
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "drip":
            for at in range(len(body)):
                self._write(body[at : at + 1])
                if self.server.ended.wait(self.server.drip_seconds):
                    break
        elif fault in ("drop", "stall-body"):
            self._write(body[: len(body) // 2 if self.server.drop_at is None else self.server.drop_at])
            self.server.ended.wait(self.server.stall_seconds if fault == "stall-body" else 0.02)
            self.close_connection = True
            self.connection.close()
        else:
            self._write(body)

    def _stream(self, fault: str) -> None:
        """A body as long as the client reads, or for gzip-bomb as long as it is."""
        names = {
            "huge-length": ("Content-Length", str(2**62)),
            "endless-chunked": ("Transfer-Encoding", "chunked"),
            "gzip-bomb": ("Content-Encoding", "gzip"),
        }
        if fault in names:
            self.send_header(*names[fault])
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.command == "HEAD":
            return
        if fault == "gzip-bomb":
            for piece in gzip_pieces():
                self._write(piece)
        while fault != "gzip-bomb" and not self.server.ended.is_set():
            self._write(b"10000\r\n" + PIECE + b"\r\n" if fault == "endless-chunked" else PIECE)

    def _answer_without_headers(self, fault: str) -> None:
        self.close_connection = True
        if fault == "endless-headers":
            self._write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.ended.is_set():
                self._write(b"X-Again: " + b"a" * 1000 + b"\r\n")
        self.connection.close()

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        with self.server.lock:
            self.server.bytes_sent += len(data)

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


_STATUS = {"error": 500, "too-many": 429, "missing": 404, "forbidden": 403}
_STATUS |= dict.fromkeys(("unavailable", "unavailable-later"), 503) | dict.fromkeys(("redirect", "redirect-loop"), 302)
_STREAMS = ("endless", "endless-chunked", "huge-length", "gzip-bomb")
_BODIES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda body: body[: len(body) // 2],
    "empty": lambda body: b"",
    "long": lambda body: body + bytes(2**20),
    "changed": lambda body: body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :],
    "gzip": gzip.compress,
}
