"""Downloads of weights: a slow line is waited for, a server that hardly sends is not."""

import urllib.request
from types import SimpleNamespace

import pytest
from faulty_server import serve
from huggingface_hub import constants
from huggingface_hub.file_download import http_get

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
