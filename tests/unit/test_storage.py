"""URLs: the same samples, or one clear line, whatever the server does; never a hang, never another sample."""

import os
import time
from itertools import islice

import numpy as np
import pytest
from faulty_server import files_of, patience_for, serve
from helpers import draw_labelled, draw_shards, write_shards

from glioma_dist.config import DataConfig
from glioma_dist.data.loader import evaluation_samples, training_batches
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.cache import ShardCache
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import Patience, RemoteFolder, open_folder
from glioma_dist.data.shards.urls import check_url, is_url
from glioma_dist.data.targets import SECOND_TARGETS
from glioma_dist.errors import InputError
from glioma_dist.size import Size

pytest.importorskip("aiohttp", reason="needs the extra cloud")
QUICK = patience_for(None, attempts=3)


@pytest.fixture
def server(shards):
    with serve(files_of(shards)) as server:
        yield server


def check_same_samples(reader: ShardReader, expected: ShardReader) -> None:
    assert reader.shard_sizes == expected.shard_sizes
    assert reader.fingerprint == expected.fingerprint
    for shard, size in enumerate(expected.shard_sizes):
        for place in range(size):
            found, wanted = reader.read(shard, place), expected.read(shard, place)
            assert (found.key, found.metadata) == (wanted.key, wanted.metadata)
            np.testing.assert_array_equal(found.image, wanted.image)
            np.testing.assert_array_equal(found.mask, wanted.mask)
            assert (found.instances is None) == (wanted.instances is None)
            if wanted.instances is not None:
                np.testing.assert_array_equal(found.instances, wanted.instances)


def test_a_server_gives_the_samples_of_the_folder_and_no_more_bytes_than_theirs(server, shards):
    reader, local = ShardReader(f"{server.url}/train", patience=QUICK), ShardReader(shards / "train")
    check_same_samples(reader, local)
    assert reader.keys() == local.keys()
    tars = [byte_range for path, byte_range in server.requests if path.endswith(".tar")]
    assert len(tars) == len(local)
    assert None not in tars


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Shards of format 2: two classes, ignored pixels, and a number for each cell."""
    folder = tmp_path_factory.mktemp("labelled")
    samples = [draw_labelled(number, num_classes=2, has_ignore=True, has_instances=True) for number in range(6)]
    write_shards(folder / "train", samples, 2, ("live", "dead"))
    return folder


@pytest.mark.parametrize("is_cached", [False, True], ids=["by range", "into the cache"])
@pytest.mark.parametrize("fault", [None, "error", "drop", "short", "changed"])
def test_labels_of_format_2_come_whole_from_a_url(labelled, tmp_path, fault, is_cached):
    local = ShardReader(labelled / "train")
    assert local.index["format_version"] == 2
    spared = "index" if fault == "changed" else "nothing"
    with serve(files_of(labelled)) as server:
        server.faults = lambda path, number: fault if number % 4 == 0 and spared not in path else None
        cache = ShardCache(tmp_path, 10**8) if is_cached else None
        reader = ShardReader(f"{server.url}/train", cache, patience_for(fault, attempts=4))
        check_same_samples(reader, local)
        assert (reader.classes, reader.has_ignore, reader.has_instances) == (("live", "dead"), True, True)
        asked = len(server.requests)
        check_same_samples(reader, local)
    assert (len(server.requests) == asked) == is_cached
    assert len(list(tmp_path.glob("*.tar"))) == (3 if is_cached else 0)


@pytest.mark.parametrize("is_cached", [False, True], ids=["by range", "into the cache"])
@pytest.mark.parametrize("target", SECOND_TARGETS)
def test_workers_make_the_batches_of_the_folder_from_labels_at_a_url(labelled, tmp_path, target, is_cached):
    made = []
    with serve(files_of(labelled)) as server:
        for place, workers in ((str(labelled / "train"), 0), (f"{server.url}/train", 2)):
            config = DataConfig(train=(place,), size=Size(64, 64), workers=workers, augment=("flips",))
            cache = ShardCache(tmp_path, 10**8) if is_cached and workers else None
            reader = ShardReader(place, cache, QUICK)
            order = DeterministicSampler(reader.shard_sizes, 2, seed=1)
            batches = training_batches(reader, order, config, targets=("mask", target))
            made.append(list(islice(batches, 4)))
            batches.close()
    for one, other in zip(*made, strict=True):
        assert one.masks.shape == (2, 2, 64, 64)
        assert one.masks[:, 1].any()
        for each in ("images", "masks", "seeds"):
            np.testing.assert_array_equal(getattr(one, each), getattr(other, each))


@pytest.mark.parametrize("fault", ["error", "stall", "drop", "short", "changed", "empty"])
def test_what_goes_wrong_once_is_asked_again(server, shards, fault):
    """The first answer about every file, and every fourth one after it, is a bad one. A changed byte of the index
    is another test's."""
    spared = "index" if fault == "changed" else "nothing"
    server.faults = lambda path, number: fault if number % 4 == 0 and spared not in path else None
    check_same_samples(
        ShardReader(f"{server.url}/train", patience=patience_for(fault, attempts=4)), ShardReader(shards / "train")
    )


FAULTS = ["error", "stall", "drop", "short", "empty", "changed"]
FAULTY_FILES = [(fault, what) for fault in FAULTS for what in ["index.json", ".members.json", ".tar"]]
FAULTY_FILES.remove(("changed", "index.json"))  # some changes there do not matter; see the next test


@pytest.mark.parametrize(("fault", "what"), FAULTY_FILES)
def test_what_stays_wrong_is_one_line_that_names_it(server, fault, what):
    server.faults = lambda path, number: fault if path.endswith(what) else None
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        ShardReader(f"{server.url}/train", patience=patience_for(fault)).read(2, 1)
    assert time.monotonic() - start < 30
    assert "\n" not in str(error.value)
    assert f"{server.url}/train/" in str(error.value)
    assert what in str(error.value)


def test_any_byte_of_the_index_that_a_server_changes_is_noticed_or_does_not_matter(server, shards):
    """All that decides which samples are read is held by a checksum somewhere."""
    local, answer = ShardReader(shards / "train"), server.answer
    size = (shards / "train" / "index.json").stat().st_size
    noticed = 0
    for at in np.random.default_rng(0).choice(size, 24, replace=False).tolist():

        def lie(method, path, headers, at=at):
            status, head, body = answer(method, path, headers)
            if path.endswith("index.json"):
                body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
            return status, head, body

        server.answer = lie
        try:
            reader = ShardReader(f"{server.url}/train", patience=patience_for(None, attempts=1))
            found = [reader.read(shard, 0) for shard in range(len(local.shard_sizes))]
        except InputError:
            noticed += 1
            continue
        for shard, sample in enumerate(found):
            np.testing.assert_array_equal(sample.image, local.read(shard, 0).image)
    assert noticed > 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_goes_away_ends_the_reading(server, workers):
    reader = ShardReader(f"{server.url}/train", patience=patience_for(None))
    samples = evaluation_samples(reader, 0, 1, workers)
    next(samples)
    server.faults = lambda path, number: "drop"
    with pytest.raises(InputError, match="cannot be read after 2 tries"):
        list(samples)


def test_what_is_not_there_is_not_asked_for_again(server):
    with pytest.raises(InputError, match=r"nowhere/index.json cannot be read.*is the URL right"):
        ShardReader(f"{server.url}/nowhere", patience=QUICK)
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["s3://a$b/x", "hf://a--b/c", "hf://a/b.git/x", "hf://datasets/a..b/c"])
@pytest.mark.parametrize("read", ["read_all", "read_optional"])
def test_a_name_that_no_store_can_have_is_not_asked_for_again(url, read, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    folder = RemoteFolder(url, Patience(attempts=2, wait_seconds=1e6))
    with pytest.raises(InputError, match=r"cannot be read .*is the URL right") as error:
        getattr(folder, read)("manifest.json", 100)
    assert type(error.value) is InputError
    assert "\n" not in str(error.value)


def test_waiting_grows_between_tries(server, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.faults = lambda path, number: "error"
    with pytest.raises(InputError, match="after 5 tries"):
        RemoteFolder(server.url, Patience(attempts=5, wait_seconds=1.0)).read_all("train/index.json", 10**6)
    assert len(waits) == 4
    for number, wait in enumerate(waits):
        assert 0.5 * 2**number <= wait <= 1.5 * 2**number


@pytest.mark.parametrize(
    "url",
    [
        "pipe:cat shards.tar",
        "pipe://cat",
        "file:///etc",
        "ftp://host/shards",
        "simplecache::s3://bucket/shards",
        "s3://bucket/shards::http://host",
        "memory://shards",
        "S3://bucket",
        "http://host/a b",
        "http://",
        "://",
        "github://a:b@c/d",
        "http://[/x",
        "https://host:99999/x",
        "http://host:port/x",
    ],
)
def test_only_the_schemes_of_the_list_are_read(url):
    assert is_url(url)
    with pytest.raises(InputError, match="is no URL that shards are read from") as error:
        open_folder(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@host/x",
        "https://me:secret@host:99999/x",
        "https://host/x?token=secret",
        "https://host/x#secret",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(InputError, match="through the environment") as error:
        check_url(url)
    assert "secret" not in str(error.value)


def test_a_scheme_whose_library_is_missing_says_what_to_install(monkeypatch):
    import fsspec

    def missing(*_):
        raise ImportError("Install adlfs to access Azure")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(InputError, match=r"Install adlfs.*pip install 'glioma-dist\[cloud\]'"):
        ShardReader("az://container/shards/train")


def test_a_library_that_has_no_credentials_is_not_to_be_installed_again(monkeypatch):
    import fsspec

    def refused(*_):
        raise ValueError("Must provide either a connection_string or account_name with credentials!!")  # adlfs's words

    monkeypatch.setattr(fsspec, "filesystem", refused)
    with pytest.raises(InputError, match="set the store's credentials in the environment") as caught:
        ShardReader(f"az://container/{'x' * 600}/train")
    assert "pip" not in str(caught.value)
    assert len(str(caught.value)) <= 500


def test_a_folder_is_a_folder_whatever_its_name(tmp_path):
    folder = draw_shards(tmp_path / "http:" / "s3", range(2))
    assert len(ShardReader(folder)) == 2
    assert os.fspath(folder) in ShardReader(folder).describe(0, 1)


@pytest.mark.parametrize("seconds", [0.2, 5.0])
def test_a_library_without_timeouts_of_its_own_is_given_up_too(monkeypatch, seconds):
    """The hub's file system is one of those."""
    import fsspec

    class Slow:
        async_impl = False

        def info(self, url):
            return {"size": 7}

        def cat_file(self, url, start=None, end=None):
            time.sleep(0.6)
            return b"at last"

    monkeypatch.setattr(fsspec, "filesystem", lambda *_: Slow())
    folder = RemoteFolder("hf://datasets/a/b", Patience(2, seconds, 0.01))
    if seconds > 1:
        assert folder.read_all("index.json", 10**6) == b"at last"
    else:
        with pytest.raises(InputError, match=r"2 tries \(the last: TimeoutError: no complete answer within 0.2 s"):
            folder.read_all("index.json", 10**6)
