"""Shards in an object store that speaks S3, behind a server that misbehaves."""

import time

import numpy as np
import pytest
from faulty_server import FAULTS, always, patience_for, serve, server_at
from helpers import draw_shards

from glioma_dist.data.shards.cache import ShardCache
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import ExitCode, InputError

pytest.importorskip("s3fs", reason="needs the extra cloud")
moto_server = pytest.importorskip("moto.server", reason="needs moto[server], of the extra dev")
boto3 = pytest.importorskip("boto3", reason="needs moto[server], of the extra dev")
PATIENCE = patience_for(None, attempts=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(server, local): the folder `train` of the bucket `cells`, behind a server whose faults can be set."""
    local = draw_shards(tmp_path_factory.mktemp("bucket") / "train", range(7))
    moto = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    with (
        pytest.MonkeyPatch.context() as patch,
        serve(server_at("http://{}:{}".format(*moto.get_host_and_port()))) as server,
    ):
        for name, value in {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url="http://{}:{}".format(*moto.get_host_and_port()))
        client.create_bucket(Bucket="cells")
        for path in local.iterdir():
            client.put_object(Bucket="cells", Key=f"train/{path.name}", Body=path.read_bytes())
        client.close()
        yield server, local
    moto.stop()


def check_same(reader: ShardReader, local: ShardReader) -> None:
    assert reader.keys() == local.keys()
    for shard, size in enumerate(local.shard_sizes):
        for place in range(size):
            np.testing.assert_array_equal(reader.read(shard, place).image, local.read(shard, place).image)


@pytest.mark.parametrize("cached", [False, True], ids=["by range", "into the cache"])
@pytest.mark.parametrize("fault", [None, "error", "stall", "drop", "short", "changed"])
def test_the_store_gives_the_folders_samples_or_is_asked_again(store, tmp_path, fault, cached):
    server, local = store
    server.requests.clear()
    server.faults = lambda path, number: fault if number == 0 and path.endswith((".tar", ".members.json")) else None
    patience = patience_for(fault, attempts=4)
    cache = ShardCache(tmp_path / "cache", 10**7) if cached else None
    check_same(ShardReader("s3://cells/train", cache, patience), ShardReader(local))
    assert len(server.requests) > 6


LATER = {"error", "unavailable", "unavailable-later", "too-many", "stall", "stall-body", "drip", "refuse", "drop"}
"""Faults of the service. "redirect", "missing", "forbidden" are those that botocore has rules of its own for."""


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"redirect", "redirect-loop", "endless-headers"}))
@pytest.mark.parametrize("what", ["index.json", ".tar"])
def test_a_store_that_stays_bad_is_one_line_in_bounded_time_and_bytes(store, fault, what):
    server, _ = store
    server.requests.clear()
    server.retry_after, server.stall_seconds, server.bytes_sent = "0", 3, 0
    server.faults = always(fault, what)
    start, refused = time.monotonic(), None
    try:
        ShardReader("s3://cells/train", patience=patience_for(fault)).read(1, 0)
    except InputError as error:
        refused = error
    assert time.monotonic() - start < 50
    assert server.bytes_sent < 2 * (80 if what == "index.json" else 17) * 2**20
    if what == "index.json" and fault in ("no-range", "other-range", "changed"):
        return  # no fault of an answer that is asked for whole
    assert refused is not None
    assert "s3://cells/train/" in str(refused)
    assert what in str(refused)
    assert "\n" not in str(refused)
    assert len(str(refused)) <= 500
    assert (refused.exit_code == ExitCode.UNAVAILABLE) == (fault in LATER), refused


def test_an_object_that_is_not_there_is_one_line(store):
    server, _ = store
    server.faults = lambda path, number: None
    with pytest.raises(InputError, match=r"s3://cells/val/index.json cannot be read.*is the URL right"):
        ShardReader("s3://cells/val", patience=PATIENCE)
