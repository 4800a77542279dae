"""Downloads of weights: a slow line is waited for, a server that hardly sends is not."""

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace

import fsspec
import pytest
from faulty_server import serve
from huggingface_hub import constants
from huggingface_hub.file_download import http_get

from glioma_dist.data.download import web
from glioma_dist.data.shards.bodies import Span
from glioma_dist.data.shards.transfer import read_span
from glioma_dist.model.pretrained import download


def weights_of(num_bytes: int):
    return lambda method, path, headers: (200, {}, bytes(num_bytes))


def test_the_hub_s_client_writes_often_enough_to_be_watched(tmp_path, monkeypatch):
    """A slow line is not taken for a silent server. Its own chunks are of 10 MiB."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    before, sizes = constants.DOWNLOAD_CHUNK_SIZE, []
    with serve(weights_of(2**20)) as server:
        file = SimpleNamespace(write=lambda data: sizes.append(len(data)), tell=lambda: sum(sizes))
        download.within_bound(lambda: http_get(f"{server.url}/weights", file), tmp_path, None)
    assert sum(sizes) == 2**20
    assert max(sizes) <= download.HUB_CHUNK_BYTES < 2**20
    assert before == constants.DOWNLOAD_CHUNK_SIZE


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.5)
    with serve(weights_of(10**5)) as server, open(tmp_path / "file", "wb", buffering=0) as file:
        server.faults = lambda path, number: "drip"

        def fetch() -> None:
            with urllib.request.urlopen(f"{server.url}/weights") as answer:
                while data := answer.read(1):
                    file.write(data)

        with pytest.raises(download.NotReachedError, match=r"only \d+ bytes came in 0\.5 s"):
            download.within_bound(fetch, tmp_path, None)


PLACES = {
    "body": b"Content-Length: 100000\r\n\r\nabcde",
    "chunk": b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nffff\r\n",
    "size of a chunk": b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n5;",
    "trailer": b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nA: ",
}
"""Where in an answer a server begins to send a byte now and then -> what it sends before, after the status."""


@contextlib.contextmanager
def dripping(before: bytes) -> Iterator[str]:
    """A server of one answer that has no end. Yields its URL."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(2**16)
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + before)
                while not ended.wait(0.05):
                    connection.sendall(b"x")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/a"
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize("place", PLACES)
def test_a_server_that_drips_anywhere_in_a_body_is_given_up(place):
    """http.client and aiohttp read the sizes of chunks and the trailer as lines: no read of the socket is late."""
    with dripping(PLACES[place]) as url:
        answer = web.ask(url, {}, 5)
        with answer.response, pytest.raises(TimeoutError, match=r"only \d+ bytes came within 0\.3 s"):
            list(answer.pieces(0.3))
    with dripping(PLACES[place]) as url, pytest.raises(TimeoutError):
        read_span(fsspec.filesystem("http", skip_instance_cache=True), url, Span(None, 10**6), 0.5)
