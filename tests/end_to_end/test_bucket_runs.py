"""Runs whose folder is at a URL: staged here, uploaded complete, resumed on another machine, bit for bit."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import rows, run, start, tiny_config, train_here

from glioma_dist.config.paths import Url
from glioma_dist.data.shards.storage import Patience
from glioma_dist.errors import StopRequested, UnavailableError
from glioma_dist.training import lease as lease_module
from glioma_dist.training import loop, remote_run
from glioma_dist.training.lease import Lease
from glioma_dist.training.metrics_file import MetricsFile

pytestmark = pytest.mark.usefixtures("no_url_becomes_a_folder")
URL = Url("s3://cells/run")


@pytest.fixture
def store(empty_bucket):
    return empty_bucket


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, runtime):
    """The same run in a local folder, never disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    loop.train(tiny_config(shards, out, save_every=2), runtime)
    return out


def remote_config(shards, stage: Path | None, **changes):
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
    assert index["last"][0]["step"] == 6
    assert len(index["last"]) == 2
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


def kill_here(*_: object) -> None:
    """End this process as a machine that is taken away: nothing is said, nothing is finished."""
    os.kill(os.getpid(), signal.SIGKILL)


def train_on_machine(config, caches: str) -> tuple[list[str], bytes]:
    """Train in a process that stands for a machine of its own, with its own cache folder."""
    os.environ |= {"XDG_CACHE_HOME": f"{caches}/{os.environ['RANK']}", "LOCAL_RANK": "0"}
    train_here(config)
    found = sorted(Path(os.environ["XDG_CACHE_HOME"]).glob("glioma-dist/runs/run-*/run/**/*.safetensors"))
    return [str(path) for path in found], b"".join(path.read_bytes() for path in found)


@pytest.mark.slow
def test_every_machine_of_a_launch_resumes_from_the_same_checkpoint(store, shards, tmp_path, runtime):
    """Only the first machine writes; the second fetches what it needs, and has nothing of its own otherwise."""
    config = remote_config(shards, None)
    stopped = replace(config, max_steps=3, eval_every=3)
    (first, _), (second, held) = run(train_on_machine, stopped, str(tmp_path / "caches"), num_processes=2)
    assert first
    assert (second, held) == ([], b"")
    store.requests.clear()
    (_, found), (_, held) = run(train_on_machine, config, str(tmp_path / "caches"), num_processes=2)
    assert held != b""  # fetched to resume from
    fetched = [path for method, path in store.requests if method == "GET" and path.endswith("optimizer.safetensors")]
    assert fetched == ["/cells/run/checkpoints/last-000003/optimizer.safetensors"]
    index = json.loads(store.read("run/checkpoints.json"))
    assert index["last"][0]["step"] == 6
    assert store.read(f"run/checkpoints/{index['last'][0]['name']}/optimizer.safetensors") in found


def train_and_die(config, step: int) -> None:
    """Train in a process of its own, which is killed after a step."""
    from glioma_dist.data.shards.store import Store
    from glioma_dist.distributed.context import DistributedContext

    def die() -> None:
        until, store = time.monotonic() + 60, Store(config.out)
        while time.monotonic() < until:
            found = store.read_tagged("checkpoints.json", 2**20)
            if found is not None and json.loads(found[0])["last"][0]["step"] >= step - 2:
                break
            time.sleep(0.2)
        kill_here()

    with at_step(step, die):
        loop.train(config, DistributedContext.start())


@pytest.mark.slow
def test_a_killed_machine_is_replaced_by_another(store, shards, tmp_path, whole, runtime):
    """Killed after step 5, when step 3 or 4 is at the URL: that of 4 may not be noticed as written. The lease of the
    killed one has to become stale first."""
    (ended,) = start(train_and_die, remote_config(shards, tmp_path / "one"), 5).wait()
    assert ended.exit_code == -signal.SIGKILL, ended.stderr
    assert json.loads(store.read("run/checkpoints.json"))["last"][0]["step"] in (3, 4)
    with pytest.MonkeyPatch.context() as patch:
        lease = json.loads(store.read("run/lease.json"))
        store.put("run/lease.json", json.dumps(lease | {"seconds": 1.0}).encode())
        patch.setattr(lease_module, "LEASE_SECONDS", 1.0)
        loop.train(remote_config(shards, tmp_path / "two"), runtime)
    check_same(store, tmp_path / "two", whole)


@pytest.mark.slow
def test_the_same_machine_goes_on_at_once(store, shards, tmp_path, whole, runtime):
    """Its lock says that the killed training is gone: there is no lease to wait for."""
    (ended,) = start(train_and_die, remote_config(shards, tmp_path / "one"), 5).wait()
    assert ended.exit_code == -signal.SIGKILL, ended.stderr
    begun = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lease, "_wait_until_stale", lambda *_: pytest.fail("waited"))
        loop.train(remote_config(shards, tmp_path / "one"), runtime)
    assert time.monotonic() - begun < 60
    check_same(store, tmp_path / "one", whole)


BROKEN = {
    "cut": ("cut", "/model.safetensors"),
    "lost-answer": ("lost-answer", "/checkpoints.json"),
    "unavailable": ("unavailable", "/optimizer.safetensors"),
    "manifest": ("cut", "/manifest.json"),
    "stall": ("stall", "/model.safetensors"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_an_upload_that_is_cut_is_tried_again(store, shards, tmp_path, whole, runtime, name):
    fault, ending = BROKEN[name]
    store.faults = lambda method, path, number: (
        fault if method == "PUT" and path.endswith(ending) and number == 0 else None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            remote_run, "UPLOAD_PATIENCE", Patience(4, seconds=1.0 if fault == "stall" else 20, wait_seconds=0.01)
        )
        loop.train(remote_config(shards, tmp_path / "stage"), runtime)
    check_same(store, tmp_path / "stage", whole)


@pytest.mark.parametrize(
    "ending",
    [
        "/model.safetensors",
        *(pytest.param(f"/{each}", marks=pytest.mark.slow) for each in ("optimizer.safetensors", "manifest.json")),
        pytest.param("/checkpoints.json", marks=pytest.mark.slow),
    ],
)
def test_while_the_store_is_away_the_old_checkpoint_stays_the_newest(
    store, shards, tmp_path, whole, runtime, ending, monkeypatch
):
    """From the upload of step 4 on nothing is taken: one line, code 69, both folders keep what they have."""
    is_away = []

    def faults(method: str, path: str, number: int) -> str | None:
        if method == "PUT" and "last-000004" in path:
            is_away.append(path)
        return "cut" if is_away and method == "PUT" and path.endswith(ending) else None

    store.faults = faults
    monkeypatch.setattr(remote_run, "UPLOAD_PATIENCE", Patience(2, seconds=20, wait_seconds=0.01))
    with pytest.raises(UnavailableError) as ended:
        loop.train(remote_config(shards, tmp_path / "stage"), runtime)
    said = str(ended.value)
    assert "s3://cells/run" in said
    assert len(said) <= 600
    store.reset()
    index = json.loads(store.read("run/checkpoints.json"))
    newest = index["last"][0]
    assert newest["step"] in (2, 3), index
    assert store.read(f"run/checkpoints/{newest['name']}/manifest.json")
    machine = tmp_path / "other"
    if ending == "/model.safetensors":  # the machine is gone: another one begins where the URL is
        loop.train(remote_config(shards, machine), runtime)
        check_same(store, machine, whole)
    else:  # the machine is still there, and ahead
        loop.train(remote_config(shards, tmp_path / "stage"), runtime)
        check_same(store, tmp_path / "stage", whole)
