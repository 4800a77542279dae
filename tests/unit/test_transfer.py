"""Every fault of a web server: the right samples, or one line in bounded time, bytes and memory."""

import asyncio
import resource
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from faulty_server import FAULTS, always, files_of, first, outage, patience_for, serve
from helpers import draw_shards, run

from glioma_dist.data.shards.cache import ShardCache
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import MAX_RETRY_AFTER, Patience, RemoteFolder
from glioma_dist.errors import ExitCode, InputError

aiohttp = pytest.importorskip("aiohttp", reason="needs the extra cloud")
import yarl  # noqa: E402 (comes with aiohttp)

from glioma_dist.data.shards.bodies import AnswerError, Span  # noqa: E402
from glioma_dist.data.shards.http_transfer import _seconds, check_redirect  # noqa: E402
from glioma_dist.data.shards.transfer import read_span  # noqa: E402

TWO = patience_for(None)
MEBIBYTE = 2**20
TRY_LATER = {
    *("error", "unavailable", "unavailable-later", "too-many", "stall", "stall-body", "drip", "refuse", "drop"),
    "endless-headers",
}
"""Faults of the service. All others are of the files, or of how they are served, and asking again is no use."""
HARMLESS = {
    ("no-range", "index.json"),
    ("no-range", ".members.json"),
    ("other-range", "index.json"),
    ("other-range", ".members.json"),
}
"""Faults that cannot be told from a good answer, because all of the file is asked for."""
FILES = ["index.json", ".members.json", ".tar"]


@pytest.fixture
def server(shards):
    with serve(files_of(shards)) as server:
        server.retry_after, server.stall_seconds = "0", 5
        yield server


def exit_code(fault: str) -> ExitCode:
    return ExitCode.UNAVAILABLE if fault in TRY_LATER else ExitCode.USER_ERROR


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_stays_wrong_is_one_line_in_bounded_time_and_bytes(server, shards, fault, what):
    server.faults = always(fault, what)
    server.redirect_to = "file:///etc/passwd"
    start, refused, sample = time.monotonic(), None, None
    try:
        sample = ShardReader(f"{server.url}/train", patience=patience_for(fault)).read(2, 1)
    except InputError as error:
        refused = error
    # What is changed in an index can be of no matter, or anything.
    if (fault, what) in HARMLESS or ((fault, what) == ("changed", "index.json") and refused is None):
        np.testing.assert_array_equal(sample.image, ShardReader(shards / "train").read(2, 1).image)
    else:
        assert refused is not None
        assert refused.exit_code == exit_code(fault), refused
        assert "\n" not in str(refused)
        assert len(str(refused)) <= 500
        assert f"{server.url}/train/" in str(refused)
        assert "convert again" not in str(refused)
    assert time.monotonic() - start < 50
    # Twice the bound of what is read, and what the system keeps for a connection.
    most = 64 * MEBIBYTE if what == "index.json" else MEBIBYTE
    assert server.bytes_sent < 2 * (most + 16 * MEBIBYTE)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_once_is_asked_again_or_is_one_line(server, shards, tmp_path, fault):
    server.faults = first(fault, ".tar")
    server.redirect_to = "/nowhere"
    local = ShardReader(shards / "train")
    for cache in (None, ShardCache(tmp_path / "cache", 10**8)):
        server.requests.clear()
        reader = ShardReader(f"{server.url}/train", cache, patience_for(fault, attempts=4))
        try:
            found = reader.read(1, 2)
        except InputError:
            # These say that the same question would have the same answer.
            assert fault in {"gzip", "gzip-bomb", "redirect", "redirect-loop", "missing", "forbidden", "no-range"}
        else:
            np.testing.assert_array_equal(found.image, local.read(1, 2).image)


def peak_growth(url: str) -> tuple[float, float]:
    """Mebibytes that this fresh process grows by while it tries a URL, and the seconds it takes."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InputError):
        ShardReader(url, patience=Patience(3, 5.0, 0.01)).read(0, 0)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, time.monotonic() - start


@pytest.mark.parametrize(("what", "mebibytes"), [("index.json", 250), (".members.json", 60), (".tar", 60)])
@pytest.mark.parametrize("fault", ["endless", "endless-chunked", "huge-length", "gzip-bomb", "long"])
def test_memory_is_bounded_whatever_comes(server, fault, what, mebibytes):
    server.faults = always(fault, what)
    (grown, seconds) = run(peak_growth, f"{server.url}/train")[0]
    assert grown < mebibytes
    assert seconds < 100


def test_a_store_that_returns_complete_answers_is_asked_for_the_size_first():
    """fsspec's file systems that are not asynchronous, as the memory's, have no answer piece by piece."""
    from fsspec.implementations.memory import MemoryFileSystem

    class Store(MemoryFileSystem):
        store, num_reads = {}, 0

        def cat_file(self, *given, **named):
            self.num_reads += 1
            return super().cat_file(*given, **named)

    files = Store()
    files.pipe_file("/index.json", bytes(2000))
    with pytest.raises(AnswerError, match="has 2000 bytes, at most 1000 are read"):
        read_span(files, "/index.json", Span(None, 1000), 5)
    assert files.num_reads == 0
    assert len(read_span(files, "/index.json", Span(None, 2000), 5)) == 2000
    assert len(read_span(files, "/index.json", Span(10, 20), 5)) == 10


@pytest.mark.parametrize("chunk_bytes", [2**23, 5000], ids=["in one piece", "in pieces"])
def test_a_server_without_ranges_serves_each_shard_once_into_a_cache(
    server, shards, tmp_path, monkeypatch, chunk_bytes
):
    monkeypatch.setattr("glioma_dist.data.shards.cache.CHUNK_BYTES", chunk_bytes)
    server.faults = always("no-range")
    local = ShardReader(shards / "train")
    reader = ShardReader(f"{server.url}/train", ShardCache(tmp_path / "cache", 10**8), TWO)
    for shard, size in enumerate(local.shard_sizes):
        for place in range(size):
            np.testing.assert_array_equal(reader.read(shard, place).image, local.read(shard, place).image)
    asked = [path for path, _ in server.requests if path.endswith(".tar")]
    assert sorted(set(asked)) == sorted(f"/train/0000{number}.tar" for number in range(4))
    assert len(asked) == (4 if chunk_bytes > 5000 else 8)  # one to find out, one for all of it
    with pytest.raises(InputError, match=r"00000.tar: the server answers with the complete file .* --data.cache"):
        ShardReader(f"{server.url}/train", patience=TWO).read(0, 0)


def test_a_server_without_ranges_and_a_cache_without_room_give_the_samples(server, shards, tmp_path, monkeypatch):
    """Others' shards leave no room: what is not wanted of the shard is thrown away."""
    server.faults = always("no-range")
    monkeypatch.setattr(ShardCache, "_make_room", lambda *_: False)
    local, reader = (
        ShardReader(shards / "train"),
        ShardReader(f"{server.url}/train", ShardCache(tmp_path / "cache", 10**8), TWO),
    )
    for place in range(3):
        np.testing.assert_array_equal(reader.read(1, place).image, local.read(1, place).image)


def test_an_outage_that_ends_in_time_is_waited_for(server, shards):
    server.faults = outage(1.0)
    reader = ShardReader(f"{server.url}/train", patience=Patience(5, 5.0, 0.3))
    np.testing.assert_array_equal(reader.read(0, 0).image, ShardReader(shards / "train").read(0, 0).image)


@pytest.mark.parametrize("fault", ["too-many", "unavailable-later"])
def test_what_a_server_asks_to_wait_is_waited_within_a_bound(server, monkeypatch, fault):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for asked, least, most in (("7", 7, 7 * 1.5), ("999999999", MAX_RETRY_AFTER, 1.5 * MAX_RETRY_AFTER), ("x", 0, 1)):
        waits.clear()
        server.retry_after, server.faults = asked, first(fault, count=10**9)
        with pytest.raises(InputError) as error:
            RemoteFolder(server.url, Patience(3, 5.0, 0.1)).read_all("train/index.json", 10**6)
        assert error.value.exit_code == ExitCode.UNAVAILABLE
        assert len(waits) == 2
        assert all(least <= wait <= most for wait in waits), waits


def test_retry_after_is_a_number_a_date_or_nothing():
    assert _seconds("120") == 120
    assert 50 < _seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60
    for text in ("", "-5", "soon", "1e9", "Mon, 32 Foo", "9" * 400, "Fri, 31 Dec 1999 23:59:59 GMT", "\u0663"):
        assert _seconds(text) == 0


def test_redirects_of_the_web_are_followed(server, shards):
    """To another path, and to another host, which gets no credentials."""
    with serve(files_of(shards)) as other:
        answer = server.answer
        server.answer = lambda method, path, headers: (
            (302, {"Location": f"{other.url}/train/{path.rpartition('/')[2]}"}, b"")
            if path.endswith(".tar")
            else (307, {"Location": f"/train/{path.rpartition('/')[2]}"}, b"")
            if path.startswith("/moved")
            else answer(method, path, headers)
        )
        reader = ShardReader(f"{server.url}/moved", patience=TWO)
        np.testing.assert_array_equal(reader.read(1, 1).image, ShardReader(shards / "train").read(1, 1).image)
        assert [path for path, _ in other.requests] == ["/train/00001.tar"]


def test_credentials_are_for_the_host_that_was_named(server, shards, monkeypatch):
    import fsspec

    files = fsspec.filesystem("http", headers={"Authorization": "secret"}, client_kwargs={"headers": {"X-Key": "k"}})
    monkeypatch.setattr(fsspec, "filesystem", lambda *_: files)
    with serve(files_of(shards)) as other:
        answer = server.answer
        server.answer = lambda method, path, headers: (
            (302, {"Location": f"{other.url}{path}"}, b"") if path.endswith(".tar") else answer(method, path, headers)
        )
        reader = ShardReader(f"{server.url}/train", patience=TWO)
        np.testing.assert_array_equal(reader.read(1, 1).image, ShardReader(shards / "train").read(1, 1).image)
        assert {headers.get("Authorization") for headers in server.headers} == {"secret"}
        assert {headers.get("X-Key") for headers in server.headers} == {"k"}
        assert len(other.headers) == 1
        assert not {"Authorization", "X-Key"} & other.headers[0].keys()
        assert other.headers[0]["Range"].startswith("bytes=")


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://8.8.4.4/x",
        "http://127.0.0.1/x",
        "http://2130706433/x",
        "http://localhost/x",
        "http://10.1.2.3/x",
        "http://192.168.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0/x",
        "http://[::1]/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://[fe80::1]/x",
        "http://[fd00:ec2::254]/x",
    ],
)
def test_a_redirect_from_the_web_into_this_network_is_refused(target):
    with pytest.raises(AnswerError, match="not followed") as error:
        asyncio.run(check_redirect(yarl.URL("http://8.8.8.8/shards"), yarl.URL(target)))
    assert error.value.is_final


def test_other_redirects_are_not_refused():
    for first_url, target in [
        ("http://8.8.8.8/x", "https://8.8.4.4/y"),
        ("http://127.0.0.1:1/x", "http://localhost:2/y"),
        ("http://10.0.0.1/x", "http://192.168.3.4/y"),
    ]:
        asyncio.run(check_redirect(yarl.URL(first_url), yarl.URL(target)))
    for first_url, target in [("https://8.8.8.8/x", "http://8.8.8.8/x"), ("http://10.0.0.1", "http://169.254.169.254")]:
        with pytest.raises(AnswerError, match="not followed"):
            asyncio.run(check_redirect(yarl.URL(first_url), yarl.URL(target)))


def test_nobody_there_is_to_be_tried_later():
    with serve(lambda *_: (200, {}, b"")) as server:
        url = server.url
    with pytest.raises(InputError, match="after 2 tries") as error:
        ShardReader(f"{url}/train", patience=TWO)
    assert error.value.exit_code == ExitCode.UNAVAILABLE


def test_files_that_were_exchanged_since_the_index_was_read_are_noticed(tmp_path):
    folder = draw_shards(tmp_path / "train", range(10))
    with serve(files_of(tmp_path)) as server:
        reader = ShardReader(f"{server.url}/train", patience=TWO)
        cached = ShardReader(f"{server.url}/train", ShardCache(tmp_path / "cache", 10**8), TWO)
        draw_shards(folder, range(50, 60))
        for other in (reader, cached):
            with pytest.raises(InputError, match=r"upload the folder again") as error:
                other.read(1, 1)
            assert error.value.exit_code == ExitCode.USER_ERROR
