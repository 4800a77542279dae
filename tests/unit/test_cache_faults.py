"""The cache when things go wrong around it: no run ends, and every byte is right."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from faulty_server import files_of, serve
from forks import wait_until
from helpers import draw_shards, run, start
from test_cache import QUICK, expected, fetched, read_all, shard_bytes

from glioma_dist.data.shards import file_locks
from glioma_dist.data.shards.cache import ShardCache
from glioma_dist.data.shards.file_locks import HeldError, held
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import Patience

pytest.importorskip("aiohttp", reason="needs the extra cloud")


@pytest.fixture
def server(shards):
    with serve(files_of(shards)) as server:
        yield server


def read_at_random(url: str, folder, max_bytes: int, seed: int, count: int, local) -> list[str]:
    """What is wrong with `count` reads at random places, of a process of its own."""
    import io
    import sys

    sys.stderr = screen = io.StringIO()
    reader, wanted = ShardReader(url, ShardCache(folder, max_bytes), QUICK), ShardReader(local)
    images = {}
    generator, faults = np.random.default_rng([seed, os.getpid()]), []
    for _ in range(count):
        place = (int(generator.integers(len(reader.shard_sizes))), 0)
        if place not in images:
            images[place] = wanted.read(*place).image
        try:
            if not np.array_equal(reader.read(*place).image, images[place]):
                faults.append("another image")
        except Exception as error:
            faults.append(repr(error))
    return faults + screen.getvalue().splitlines()


@pytest.mark.parametrize("room", [1, 3])
def test_many_processes_that_push_each_others_shards_out_read_right_bytes(tmp_path, room):
    """Every read right, none failed, and no cache given up; in all orders of dropping, fetching and renaming."""
    folder = draw_shards(tmp_path / "train", range(12), 1, width=40, height=32)
    most = max(shard["bytes"] for shard in json.loads((folder / "index.json").read_text())["shards"])
    with serve(files_of(tmp_path)) as server:
        arguments = (f"{server.url}/train", tmp_path / "cache", room * most, room, 60, folder)
        found = run(read_at_random, *arguments, num_processes=6)
    assert found == [[]] * 6
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= room * most


def read_slowly(url: str, folder) -> None:
    ShardReader(url, ShardCache(folder, 10**8), Patience(1, 60.0, 0.01)).read(0, 0)


def test_a_process_that_is_stopped_while_it_fetches_holds_nobody_up(server, shards, tmp_path, capsys):
    server.faults = lambda path, number: "stall" if path.endswith("00000.tar") and number == 0 else None
    holder = start(read_slowly, f"{server.url}/train", tmp_path / "cache")
    wait_until(lambda: fetched(server))
    os.kill(holder.processes[0].pid, signal.SIGSTOP)
    try:
        before = time.monotonic()
        patience = Patience(attempts=2, seconds=3.0, wait_seconds=0.01)
        assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8, patience) == expected(shards)
        assert time.monotonic() - before < 20
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        assert "warning: --data.cache" in told[0]
        (seconds,) = re.findall(r"00000\.tar did not answer for (\d+) s; reading from the URL", told[0])
        assert 3 <= int(seconds) < 20
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 3
    finally:
        os.kill(holder.processes[0].pid, signal.SIGKILL)
    holder.wait()
    # What it left is cleared away, and the shard is kept.
    assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 4
    assert not list((tmp_path / "cache").glob("*.partial"))
    assert capsys.readouterr().err == ""


def test_the_lock_of_the_folder_held_by_a_stopped_process_holds_nobody_up(server, shards, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    with open(tmp_path / "cache" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = time.monotonic()
        patience = Patience(attempts=2, seconds=3.0, wait_seconds=0.01)
        assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8, patience) == expected(shards)
        assert time.monotonic() - before < 20
    assert "did not answer for" in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("*.tar"))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "ftruncate"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_ends_no_run(server, shards, tmp_path, monkeypatch, capsys, call, number):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert f"cannot be written ({os.strerror(number)}); reading from the URL without it" in told[0]
    assert ("free space" in told[0]) == (number != errno.EIO)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_disk_that_works_again_is_used_after_a_minute(server, shards, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = f"{server.url}/train"
    reader = ShardReader(source, ShardCache(tmp_path / "cache", 10**8))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        reader.read(0, 0)
    reader.read(0, 0)
    assert not list((tmp_path / "cache").glob("*.tar"))
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 61)
    reader.read(0, 0)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 1


def test_shards_give_way_where_the_disk_is_smaller_than_the_cache_may_be(server, shards, tmp_path, monkeypatch, capsys):
    room, allocate = 2 * max(shard_bytes(shards)), os.posix_fallocate

    def disk(file: int, start: int, size: int) -> None:
        used = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
        if used + size > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", disk)
    for _ in range(2):
        assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)
        assert 1 <= len(list((tmp_path / "cache").glob("*.tar"))) <= 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["folder", "pipe", "link", "other user's"])
def test_things_in_the_cache_that_are_no_shards_are_in_nobodys_way(server, shards, tmp_path, what):
    read_all(f"{server.url}/train", tmp_path / "cache", 10**8)
    (tmp_path / "elsewhere").write_text("keep")
    for path in (tmp_path / "cache").glob("*.tar"):
        path.unlink()
        if what == "folder":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "link":
            path.symlink_to(tmp_path / "elsewhere")
        else:
            path.write_bytes(b"")
            path.chmod(0)
    before = time.monotonic()
    assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)
    assert time.monotonic() - before < 30
    assert (tmp_path / "elsewhere").read_text() == "keep"


def test_a_cache_that_is_removed_in_mid_run_is_made_again(server, shards, tmp_path):
    reader, wanted = (
        ShardReader(f"{server.url}/train", ShardCache(tmp_path / "cache", 10**8), QUICK),
        ShardReader(shards / "train"),
    )
    for shard in (0, 1, 0, 2):
        np.testing.assert_array_equal(reader.read(shard, 0).image, wanted.read(shard, 0).image)
        shutil.rmtree(tmp_path / "cache")


def test_a_process_that_writes_on_and_on_is_not_waited_for_without_end(tmp_path, monkeypatch):
    """The bound on all waiting, for a holder that is heard of again and again. It writes a hundred times in the time
    after which it would be taken for silent, so that it is not even where the machine is slow."""
    assert file_locks.MAX_WAITS > 2
    monkeypatch.setattr(file_locks, "MAX_WAITS", 2)
    path, ended = tmp_path / "x.partial", threading.Event()
    with held(path, 2.0, "nobody") as file:

        def write() -> None:
            while not ended.wait(0.02):
                os.utime(file)

        writer = threading.Thread(target=write)
        writer.start()
        before = time.monotonic()
        try:
            with pytest.raises(HeldError, match=r"the other did not finish within \d+ s"), held(path, 2.0, "the other"):
                pass
            assert 4 <= time.monotonic() - before < 30
        finally:
            ended.set()
            writer.join()
    with held(path, 2.0, "nobody"):
        pass
