"""Runs whose folder is at a URL: staged here, uploaded complete, resumed on another machine, bit for bit."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bucket import bucket
from helpers import rows, tiny_config

from glioma_dist.config.paths import Url
from glioma_dist.errors import StopRequested
from glioma_dist.training import loop
from glioma_dist.training.telemetry import MetricsFile

URL = Url("s3://cells/run")


@pytest.fixture(scope="module")
def server():
    with bucket() as proxy:
        yield proxy


@pytest.fixture
def store(server):
    server.reset()
    server.clear()
    return server


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, runtime):
    """The same run in a local folder, never disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    loop.train(tiny_config(shards, out, save_every=2), runtime)
    return out


def remote_config(shards, stage: Path, **changes):
    return tiny_config(shards, URL, save_every=2, stage=stage, **changes)


@contextmanager
def at_step(number: int, action) -> Iterator[None]:
    """Within it, `action` happens after the row of a step is written."""
    write = MetricsFile.write

    def writing(self, **row) -> None:
        write(self, **row)
        if row["step"] == number and "split" not in row:
            action()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsFile, "write", writing)
        yield


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def contents(out: Path) -> dict[str, bytes]:
    files = [path for name in ("last", "best") for path in (out / name).glob("*.safetensors")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def check_same(store, stage: Path, whole: Path) -> None:
    """The stage's run, and what is at the URL, are the undisturbed run."""
    assert rows(stage / "run") == rows(whole)
    assert contents(stage / "run") == contents(whole)
    index = json.loads(store.read("run/checkpoints.json"))
    assert [entry["step"] for entry in index["last"]] == [6, 4]
    for kind in ("last", "best"):
        for path in (whole / kind).glob("*.safetensors"):
            assert store.read(f"run/checkpoints/{index[kind][0]['name']}/{path.name}") == path.read_bytes()
    parts = b"".join(store.read(f"run/{part['name']}") for part in index["metrics"])
    assert parts == store.read("run/metrics.jsonl") == (stage / "run" / "metrics.jsonl").read_bytes()
    folders = {name.split("/")[2] for name in store.names("run/checkpoints/")}
    assert folders == {entry["name"] for kind in ("last", "best") for entry in index[kind]}
    assert json.loads(store.read("run/status.json"))["state"] == "finished"
    assert "run/lease.json" not in store.names("run/")


def test_a_run_is_uploaded_and_is_the_same_as_in_a_folder(store, shards, tmp_path, whole, runtime):
    result = loop.train(remote_config(shards, tmp_path / "stage"), runtime)
    assert result.out == tmp_path / "stage" / "run"
    check_same(store, tmp_path / "stage", whole)
    assert json.loads(store.read("run/config.json"))["out"] == URL


def test_another_machine_resumes_where_the_first_stopped(store, shards, tmp_path, whole, runtime, capfd):
    with at_step(4, stop), pytest.raises(StopRequested, match="checkpoint saved at step 4"):
        loop.train(remote_config(shards, tmp_path / "one"), runtime)
    shutil.rmtree(tmp_path / "one")
    capfd.readouterr()
    loop.train(remote_config(shards, tmp_path / "two"), runtime)
    assert f"{URL}: fetching the checkpoint of step 4 (this machine has none)" in capfd.readouterr().out
    check_same(store, tmp_path / "two", whole)
