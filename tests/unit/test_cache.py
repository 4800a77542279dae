"""The cache of shards: whole ones only, within its size, however many processes use it and however they end."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from faulty_server import files_of, serve
from forks import wait_until
from helpers import damage_sample, draw_shards, run, start

from glioma_dist.data.shards.cache import ShardCache
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import Patience
from glioma_dist.errors import InputError

pytest.importorskip("aiohttp", reason="needs the extra cloud")
QUICK = Patience(attempts=3, seconds=20.0, wait_seconds=0.01)


@pytest.fixture
def server(shards):
    with serve(files_of(shards)) as server:
        yield server


def fetched(server) -> list[str]:
    return [path for path, _ in server.requests if path.endswith(".tar")]


def shard_bytes(shards) -> list[int]:
    return [shard["bytes"] for shard in json.loads((shards / "train" / "index.json").read_text())["shards"]]


def read_all(url: str, folder, max_bytes: int, patience: Patience = QUICK) -> list[str]:
    """SHA-256 of every image, in order; runs in processes of its own, too."""
    reader = ShardReader(url, ShardCache(folder, max_bytes), patience)
    return [
        hashlib.sha256(reader.read(shard, place).image.tobytes()).hexdigest()
        for shard, size in enumerate(reader.shard_sizes)
        for place in range(size)
    ]


def expected(shards) -> list[str]:
    reader = ShardReader(shards / "train")
    places = [(shard, place) for shard, size in enumerate(reader.shard_sizes) for place in range(size)]
    return [hashlib.sha256(reader.read(*place).image.tobytes()).hexdigest() for place in places]


def test_a_shard_is_fetched_once_and_serves_other_processes_too(server, shards, tmp_path):
    for _ in range(2):
        assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)
    assert sorted(fetched(server)) == [f"/train/0000{number}.tar" for number in range(4)]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 4
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_the_least_recently_used_is_dropped(server, shards, tmp_path):
    sizes = shard_bytes(shards)
    cache = ShardCache(tmp_path / "cache", sum(sizes[:3]))
    reader = ShardReader(f"{server.url}/train", cache, QUICK)
    for shard in (0, 1, 2, 0, 3, 0, 1):
        reader.read(shard, 0)
        time.sleep(0.01)  # mtimes have to differ
        assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= cache.max_bytes
    # 3 took the place of 1, which was used before 2 and 0; then 1 took that of 2.
    assert fetched(server) == [f"/train/0000{number}.tar" for number in (0, 1, 2, 3, 1)]


def test_two_urls_that_end_alike_do_not_collide(shards, tmp_path):
    """webdataset's cache names files by the last part of the URL."""
    for name, first in (("a", 0), ("b", 50)):
        draw_shards(tmp_path / name / "train", range(first, first + 3))
    with serve(files_of(tmp_path)) as server:
        cache = ShardCache(tmp_path / "cache", 10**8)
        for name in "abab":
            remote, local = (
                ShardReader(f"{server.url}/{name}/train", cache, QUICK),
                ShardReader(tmp_path / name / "train"),
            )
            np.testing.assert_array_equal(remote.read(0, 1).image, local.read(0, 1).image)
    assert fetched(server) == ["/a/train/00000.tar", "/b/train/00000.tar"]


def test_other_shards_under_the_same_url_are_fetched_anew(tmp_path):
    with serve(files_of(tmp_path)) as server:
        for first in (0, 50):
            folder = draw_shards(tmp_path / "train", range(first, first + 3))
            remote = ShardReader(f"{server.url}/train", ShardCache(tmp_path / "cache", 10**8), QUICK)
            np.testing.assert_array_equal(remote.read(0, 1).image, ShardReader(folder).read(0, 1).image)


@pytest.mark.parametrize("fault", ["error", "drop", "short", "changed"])
def test_what_goes_wrong_once_is_fetched_again(server, shards, tmp_path, fault):
    server.faults = lambda path, number: fault if number == 0 and path.endswith(".tar") else None
    assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)


def test_a_shard_that_stays_changed_is_never_kept(server, tmp_path):
    server.faults = lambda path, number: "changed" if path.endswith(".tar") else None
    with pytest.raises(InputError, match=r"00000.tar: its SHA-256 is .* after 3 tries"):
        read_all(f"{server.url}/train", tmp_path / "cache", 10**8)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_file_of_the_cache_that_is_cut_short_is_fetched_anew(server, shards, tmp_path):
    read_all(f"{server.url}/train", tmp_path / "cache", 10**8)
    for path in (tmp_path / "cache").glob("*.tar"):
        os.truncate(path, 100)
    assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)


def without_checksums(folder):
    """As older folders are: no SHA-256 of tables and samples."""
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        del shard["members_sha256"]
        table_path = folder / shard["name"].replace(".tar", ".members.json")
        table = json.loads(table_path.read_text())
        for member in table:
            del member["sha256"]
        table_path.write_text(json.dumps(table))
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("kind", ["zeros", "flipped"])
def test_a_file_of_the_cache_that_is_damaged_is_fetched_again(shards, tmp_path, kind, has_checksums):
    shutil.copytree(shards / "train", tmp_path / "train")
    if not has_checksums:
        without_checksums(tmp_path / "train")
    with serve(files_of(tmp_path)) as server:
        assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)
        first = len(fetched(server))
        for path in (tmp_path / "cache").glob("*.tar"):
            data = path.read_bytes()
            path.write_bytes(
                bytes(len(data)) if kind == "zeros" else data[:5000] + bytes([data[5000] ^ 4]) + data[5001:]
            )
        assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)
        assert len(fetched(server)) == 2 * first
        assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)
        assert len(fetched(server)) == 2 * first


@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_sample_that_is_wrong_at_the_source_is_its_fault(shards, tmp_path, has_checksums):
    """The shard's SHA-256 is right, and its bytes are those of no sample."""
    folder = shutil.copytree(shards / "train", tmp_path / "train")
    damage_sample(folder, "cell-001")
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["sha256"] = hashlib.sha256((folder / "00000.tar").read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    if not has_checksums:
        without_checksums(folder)
    with serve(files_of(tmp_path)) as server:
        reader = ShardReader(f"{server.url}/train", ShardCache(tmp_path / "cache", 10**8), QUICK)
        with pytest.raises(InputError, match=rf"{server.url}/train/00000.tar") as error:
            reader.read(0, 1)
        assert len(str(error.value)) <= 500
        assert len(fetched(server)) <= 2 + QUICK.attempts
        np.testing.assert_array_equal(reader.read(0, 0).image, ShardReader(shards / "train").read(0, 0).image)


def test_a_shard_larger_than_the_cache_is_one_line(server, tmp_path):
    with pytest.raises(InputError, match=r"00000.tar has \d+ bytes, the cache 1000: give a larger --data.cache-size"):
        read_all(f"{server.url}/train", tmp_path / "cache", 1000)


def test_a_cache_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--data.cache .*file/cache: cannot be written"):
        read_all(f"{server.url}/train", tmp_path / "file" / "cache", 10**8)


def test_many_processes_at_once_fetch_each_shard_once(server, shards, tmp_path):
    together = run(read_all, f"{server.url}/train", tmp_path / "cache", 10**8, num_processes=4)
    assert together == [expected(shards)] * 4
    assert sorted(fetched(server)) == [f"/train/0000{number}.tar" for number in range(4)]


def test_many_processes_in_a_cache_of_one_shard_get_their_samples(server, shards, tmp_path):
    """What does not fit while others' shards are on their way is read by range instead."""
    most = max(shard_bytes(shards))
    sizes, ended = [], threading.Event()

    def files() -> set[tuple[str, int, int]]:
        """Name, number and size of each shard; of one that is removed meanwhile, or not."""
        found = set()
        for path in (tmp_path / "cache").glob("*.tar"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.add((path.name, status.st_ino, status.st_size))
        return found

    def watch() -> None:
        while not ended.wait(0.005):
            # What was there both times was there at once.
            sizes.append(sum(size for *_, size in files() & files()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        together = run(read_all, f"{server.url}/train", tmp_path / "cache", most, num_processes=3)
    finally:
        ended.set()
        watcher.join()
    assert together == [expected(shards)] * 3
    assert 0 < max(sizes) <= most


def test_a_killed_process_leaves_nothing_that_looks_whole_and_nothing_in_the_way(server, shards, tmp_path):
    server.faults = lambda path, number: "stall" if path.endswith(".tar") and number == 0 else None
    process = start(read_all, f"{server.url}/train", tmp_path / "cache", 10**8, Patience(1, 30.0, 0.01))
    wait_until(lambda: list((tmp_path / "cache").glob("*.partial")))
    os.kill(process.processes[0].pid, signal.SIGKILL)
    assert process.wait()[0].exit_code == -signal.SIGKILL
    assert list((tmp_path / "cache").glob("*.partial"))
    assert not list((tmp_path / "cache").glob("*.tar"))
    # Another shard is asked for first: making room for it clears away what the killed process left.
    reader = ShardReader(f"{server.url}/train", ShardCache(tmp_path / "cache", 10**8), QUICK)
    reader.read(1, 0)
    assert not list((tmp_path / "cache").glob("*.partial"))
    assert read_all(f"{server.url}/train", tmp_path / "cache", 10**8) == expected(shards)
