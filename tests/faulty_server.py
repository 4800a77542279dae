"""A web server on this machine that answers as badly as it is told to: files of a folder, or another server's."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Fault = Literal["error", "stall", "drop", "short", "changed", "empty", None]
"""error: 500. stall: nothing comes for a long time. drop: the connection ends in the middle. short: fewer bytes than
asked for, in good form. changed: one byte in the middle is another. empty: no bytes."""
STALL_SECONDS = 30
Answer = tuple[int, dict[str, str], bytes]


class FaultyServer(ThreadingHTTPServer):
    """`faults(path, number)` says what is wrong with the answer to request number `number`, from 0, for a path;
    `requests` lists paths and ranges in the order in which they came."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, str, dict], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.faults: Callable[[str, int], Fault] = lambda path, number: None
        self.requests: list[tuple[str, str | None]] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def note(self, path: str, byte_range: str | None) -> Fault:
        with self._lock:
            number = sum(path == other for other, _ in self.requests)
            self.requests.append((path, byte_range))
        return self.faults(path, number)

    def handle_error(self, *_: object) -> None:
        """Clients that went away are what the tests want."""


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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        status, headers, body = self.server.answer(self.command, self.path, dict(self.headers))
        fault = self.server.note(self.path, self.headers.get("Range"))
        if fault == "error":
            status, headers, body = 500, {}, b"out of order"
        elif fault == "stall":
            self.server.ended.wait(STALL_SECONDS)
        elif fault == "short":
            body = body[: len(body) // 2]
        elif fault == "empty":
            body = b""
        elif fault == "changed":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "drop":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(0.02)
            self.close_connection = True
            self.connection.close()
            return
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""
