"""Training from URLs: the numbers of a training from folders, whatever the server does and however often it stops."""

import itertools
from dataclasses import replace

import pytest
from faulty_server import files_of, serve
from helpers import draw_shards, rows, run, start, tiny_config, train_here

pytest.importorskip("aiohttp", reason="needs the extra cloud")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    draw_shards(folder / "a", range(8))
    draw_shards(folder / "b", range(50, 56))
    draw_shards(folder / "val", range(100, 103))
    return folder


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """Rows of a training from the folders, by one process without workers, in one go."""
    out = tmp_path_factory.mktemp("expected")
    run(train_here, config_of(data, data, out))
    return rows(out)


def config_of(data, place, out, **changes):
    names = (f"{place}/a", f"{place}/b")
    return tiny_config(data, out, train=names, val=f"{place}/val", weights=(0.75, 0.25), seed=3, **changes)


def test_a_server_that_fails_gives_the_same_training(data, expected, tmp_path):
    """First by range in the training process itself, then from a cache, kept decoded, by a worker."""
    faults = itertools.cycle(["error", "drop", "short"])
    with serve(files_of(data)) as server:
        # Each file is refused once in one way or another, and now and then again.
        server.faults = lambda path, number: next(faults) if number % 9 == 0 else None
        config = config_of(data, server.url, tmp_path / "run")
        run(train_here, replace(config, max_steps=3))
        how = {"cache": tmp_path / "cache", "cache_size": "1MB", "cache_in_memory": True, "workers": 1}
        run(train_here, replace(config, data=replace(config.data, **how)))
    assert rows(tmp_path / "run") == expected
    assert len(list(tmp_path.glob("cache/*.tar"))) == 6


def test_a_server_that_lies_ends_the_training_with_one_line(data, tmp_path):
    with serve(files_of(data)) as server:
        server.faults = lambda path, number: "changed" if path.startswith("/b/") and path.endswith(".tar") else None
        (ended,) = start(train_here, config_of(data, server.url, tmp_path / "run")).wait()
    assert ended.exit_code == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "InputError: http://127.0.0.1" in last
    assert "/b/0000" in last
    assert "cannot be read after 5 tries" in last
