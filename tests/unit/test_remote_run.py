"""What a run at a URL finds there and on this machine: which checkpoint wins, what is refused, who may write."""

import json
import os
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bucket import checks_signatures
from helpers import save_state, tiny_config

from glioma_dist.config.paths import Url
from glioma_dist.data.remote_checkpoint import parse_index
from glioma_dist.data.shards.storage import Patience
from glioma_dist.data.shards.store import Store
from glioma_dist.distributed.signals import StopSignal
from glioma_dist.errors import ExitCode, InputError, RunError, StopRequested, UnavailableError, one_line
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.unet import build_model
from glioma_dist.training import lease, remote_run
from glioma_dist.training.metrics_file import MetricsFile, read_rows
from glioma_dist.training.remote_run import staged
from glioma_dist.training.state import TrainState

pytestmark = pytest.mark.usefixtures("no_url_becomes_a_folder")
URL = Url("s3://cells/run")
FACTS = {"lineage": [], "fingerprints": {"train": "a", "val": "b"}}


@pytest.fixture
def store(empty_bucket, monkeypatch):
    quick = Patience(2, seconds=10, wait_seconds=0.01)
    monkeypatch.setattr(remote_run, "UPLOAD_PATIENCE", quick)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 8.0)  # renewed and released in a quarter of it
    real = Store.__init__
    monkeypatch.setattr(Store, "__init__", lambda self, url, patience=None: real(self, url, patience or quick))
    return empty_bucket


@pytest.fixture(scope="module")
def parts(shards):
    config = tiny_config(shards, URL, decoder_channels=(2, 2, 2, 2, 2))
    model, _ = build_model(config.model, 0)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return config, model, optimizer


@pytest.fixture
def open_run(parts, runtime):
    """A context: the run of `stage`, staged; `save` writes and uploads a checkpoint of a step."""

    @contextmanager
    def opened(stage: Path, **changes):
        config, model, optimizer = parts
        with StopSignal() as stop, staged(replace(config, stage=stage, **changes), runtime, stop) as (local, uploader):

            def save(step: int, kind: str = "last") -> None:
                local.out.mkdir(parents=True, exist_ok=True)
                with MetricsFile(local.out / "metrics.jsonl", step - 1) as rows:
                    rows.write(step=step, loss=0.5)
                moments = optimizer if kind == "last" else None
                save_state(local.out / kind, local, TrainState(step, 0.5), model, moments, FACTS, keep=2)
                uploader.checkpoint_complete(kind, step)

            yield local, uploader, save

    return opened


def run_steps(open_run, stage: Path, *steps: int) -> None:
    with open_run(stage) as (_, uploader, save):
        for step in steps:
            save(step)
            uploader.wait()


def index_of(store) -> dict:
    return json.loads(store.read("run/checkpoints.json"))


def step_here(local) -> int:
    return Checkpoint.read(local.out / "last").step


def test_the_last_ones_are_kept_and_older_ones_removed(store, open_run, tmp_path):
    run_steps(open_run, tmp_path / "one", 1, 2, 3)
    assert [entry["name"] for entry in index_of(store)["last"]] == ["last-000003", "last-000002"]
    folders = {name.split("/")[2] for name in store.names("run/checkpoints/")}
    assert folders == {"last-000003", "last-000002"}
    assert store.read("run/metrics.jsonl").count(b"\n") == 3


def test_the_manifest_of_a_checkpoint_is_written_after_its_files_and_the_list_after_that(store, open_run, tmp_path):
    run_steps(open_run, tmp_path / "one", 1)
    written = [path for method, path in store.requests if method == "PUT"]
    files = [path.rpartition("/")[2] for path in written if "last-000001" in path]
    assert files == ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
    assert written.index("/cells/run/checkpoints.json") > written.index("/cells/run/metrics/000001.jsonl")


def test_the_newest_wins_where_this_machine_is_behind(store, open_run, tmp_path, capfd):
    run_steps(open_run, tmp_path / "one", 1)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    run_steps(open_run, tmp_path / "two", 2)
    with open_run(tmp_path / "one") as (local, _, _):
        assert step_here(local) == 2
        assert (local.out / "metrics.jsonl").read_bytes() == store.read("run/metrics.jsonl")
    assert "fetching the checkpoint of step 2 (this machine has step 1)" in capfd.readouterr().out


def test_the_newest_wins_where_this_machine_is_ahead(store, open_run, tmp_path, capfd):
    run_steps(open_run, tmp_path / "one", 1)
    store.faults = lambda method, path, number: "cut" if method == "PUT" and "last-000002" in path else None
    with pytest.raises(UnavailableError, match=r"s3://cells/run has step 1, and .*/run on this machine the newest"):
        run_steps(open_run, tmp_path / "one", 2)
    assert index_of(store)["last"][0]["step"] == 1
    store.reset()
    with open_run(tmp_path / "one") as (local, _, _):
        assert step_here(local) == 2
        assert index_of(store)["last"][0]["step"] == 2
    assert "has step 1, and this machine step 2, whose upload was cut" in capfd.readouterr().err


def test_what_an_upload_that_was_cut_has_left_is_removed(store, open_run, tmp_path):
    run_steps(open_run, tmp_path / "one", 1)
    store.put("run/checkpoints/last-000009/model.safetensors", b"half")
    store.put("run/metrics/000009.jsonl", b"half")
    with open_run(tmp_path / "one"):
        assert "run/checkpoints/last-000009/model.safetensors" not in store.names("run/")
        assert "run/metrics/000009.jsonl" not in store.names("run/")


QUICK = {("changed", "model.safetensors"), ("removed", "manifest.json")}
DAMAGES = [
    pytest.param(how, file, marks=[] if (how, file) in QUICK else [pytest.mark.slow])
    for how in ("changed", "removed")
    for file in ("model.safetensors", "manifest.json", "optimizer.safetensors", "state.json")
]


@pytest.mark.parametrize(("how", "file"), DAMAGES)
def test_a_damaged_checkpoint_at_the_url_is_passed_over(store, open_run, tmp_path, capfd, file, how):
    run_steps(open_run, tmp_path / "one", 1, 2)
    name = f"run/checkpoints/last-000002/{file}"
    if how == "changed":
        data = bytearray(store.read(name))
        data[len(data) // 2] ^= 1
        store.put(name, bytes(data))
    else:
        store.clear(name)
    with open_run(tmp_path / "two") as (local, _, save):
        assert step_here(local) == 1
        save(2)
    assert "trying the checkpoint before it" in capfd.readouterr().err
    assert [entry["name"] for entry in index_of(store)["last"]] == ["last-000002-2", "last-000002"]
    with open_run(tmp_path / "three") as (local, _, _):
        assert step_here(local) == 2


@pytest.mark.parametrize("how", ["changed", "removed"])
def test_rows_of_metrics_that_are_damaged_at_the_url_are_told_of(store, open_run, tmp_path, capfd, how):
    run_steps(open_run, tmp_path / "one", 1, 2, 3)
    name = "run/metrics/000002.jsonl"
    if how == "changed":
        store.put(name, store.read(name).replace(b"0.5", b"0.7"))
    else:
        store.clear(name)
    with open_run(tmp_path / "two") as (local, uploader, save):
        assert step_here(local) == 3
        assert [row["step"] for _, row in read_rows(local.out / "metrics.jsonl")] == [1, 3]
        save(4)
        uploader.wait()
    assert "metrics/000002.jsonl" in (said := capfd.readouterr().err)
    assert "its rows of metrics.jsonl are lost" in said
    with open_run(tmp_path / "three") as (local, _, _):
        assert [row["step"] for _, row in read_rows(local.out / "metrics.jsonl")] == [1, 3, 4]
    assert "are lost" not in capfd.readouterr().err


def test_a_url_without_an_undamaged_checkpoint_is_refused(store, open_run, tmp_path):
    run_steps(open_run, tmp_path / "one", 1)
    store.clear("run/checkpoints/")
    with pytest.raises(InputError, match="no checkpoint there is undamaged"), open_run(tmp_path / "two"):
        pass
    assert "run/lease.json" not in store.names("run/")


def test_a_run_that_was_removed_from_the_url_does_not_come_back_unasked(store, open_run, tmp_path):
    run_steps(open_run, tmp_path / "one", 1)
    store.clear("run/")
    with pytest.raises(InputError, match="has no checkpoints there any more"), open_run(tmp_path / "one"):
        pass
    with open_run(tmp_path / "one", resume="never") as (local, _, _):
        assert not local.out.exists()
    assert (tmp_path / "one" / "run.old" / "last").is_dir()


def test_a_copy_of_another_run_at_the_same_url_is_set_aside(store, open_run, tmp_path, capfd):
    run_steps(open_run, tmp_path / "one", 5)
    store.clear("run/")
    run_steps(open_run, tmp_path / "two", 1)
    with open_run(tmp_path / "one") as (local, _, _):
        assert step_here(local) == 1
    assert Checkpoint.read(tmp_path / "one" / "run.old" / "last").step == 5
    assert "is another run than this machine's copy" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("run/photo.tif", {}, r"is not empty and holds no run \(it has photo.tif\)"),
        ("run/config.json", {"resume": "never"}, "--resume never: s3://cells/run is not empty"),
        ("run/checkpoints.json", {}, "checkpoints.json"),
    ],
)
def test_a_url_that_holds_other_things_is_refused_and_left_alone(store, open_run, tmp_path, name, changes, words):
    store.put(name, b"[1]")
    with pytest.raises(InputError, match=words) as refused, open_run(tmp_path / "one", **changes):
        pass
    assert refused.value.exit_code == ExitCode.USER_ERROR
    assert store.names() == [name]


def test_a_stage_that_holds_other_things_is_refused(store, open_run, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "photo.tif").touch()
    with (
        pytest.raises(InputError, match=r"--stage .*holds no staged run \(it has photo.tif\)"),
        open_run(tmp_path / "one"),
    ):
        pass
    run_steps(open_run, tmp_path / "two", 1)
    with (
        pytest.raises(InputError, match="the run of s3://cells/run is staged there"),
        open_run(tmp_path / "two", out=Url("s3://cells/other")),
    ):
        pass


@pytest.mark.parametrize("fault", ["file", "below a file", "pipe", "loop", "garbage"])
def test_a_stage_that_cannot_be_used_is_one_line(store, open_run, tmp_path, fault):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "bucket.json").write_bytes(b"\x93NUMPY")
    stage = tmp_path / "file" / "x" if fault == "below a file" else tmp_path / fault
    with pytest.raises(InputError) as refused, open_run(stage):
        pass
    assert str(stage) in str(refused.value)
    assert refused.value.exit_code == ExitCode.USER_ERROR
    assert store.names() == []


REFUSALS = {
    "bucket missing": ("s3://nowhere/run", None, ExitCode.USER_ERROR, "does the bucket exist"),
    "not allowed": (URL, "forbidden", ExitCode.USER_ERROR, "do your credentials allow it"),
    "away": (URL, "unavailable", ExitCode.UNAVAILABLE, "try later"),
    "slow down": (URL, "slow-down", ExitCode.UNAVAILABLE, "try later"),
    "refuses": (URL, "refuse", ExitCode.UNAVAILABLE, "try later"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_store_that_cannot_be_used_is_one_line_and_a_code(store, open_run, tmp_path, name):
    url, fault, code, words = REFUSALS[name]
    store.faults = lambda method, path, number: fault
    with pytest.raises(InputError, match=words) as refused, open_run(tmp_path / "one", out=Url(url)):
        pass
    assert refused.value.exit_code == code
    assert len(str(refused.value)) <= 500
    assert str(url) in str(refused.value)


def test_without_credentials_it_is_one_line(store, open_run, tmp_path, monkeypatch):
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match="NoCredentialsError") as refused, open_run(tmp_path / "one"):
        pass
    assert refused.value.exit_code == ExitCode.USER_ERROR
    s3fs.S3FileSystem.clear_instance_cache()


def test_two_trainings_at_once_are_refused(store, open_run, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEWALS", 16)  # the second one sees that the first one lives
    with open_run(tmp_path / "one") as (_, _, save):
        with (
            pytest.raises(InputError, match="another training is writing there") as refused,
            open_run(tmp_path / "two"),
        ):
            pass
        assert refused.value.exit_code == ExitCode.USER_ERROR
        save(1)
    assert index_of(store)["last"][0]["step"] == 1
    with open_run(tmp_path / "two") as (local, _, _):
        assert step_here(local) == 1


def test_a_training_that_was_frozen_does_not_write_over_the_one_that_took_over(store, open_run, tmp_path, monkeypatch):
    """Its lease became stale; the other has it now. It ends with a line and changes nothing."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(lease.Lease, "_renew", lambda self: None)

    def take_over() -> None:
        with open_run(tmp_path / "one") as (_, _, save):
            run_steps(open_run, tmp_path / "two", 7)
            save(1)

    with pytest.raises(InputError, match="another training has written there"):
        take_over()
    assert [entry["step"] for entry in index_of(store)["last"]] == [7]


def test_a_training_hears_that_another_took_over(store, open_run, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)

    def lose_it() -> None:
        with open_run(tmp_path / "one") as (_, uploader, save):
            store.put("run/lease.json", json.dumps({"holder": "another", "host": "node7"}).encode())
            until = time.monotonic() + 30
            while uploader.problem is None and time.monotonic() < until:
                time.sleep(0.05)
            assert "a training on node7" in str(uploader.problem)
            save(1)

    with pytest.raises(InputError, match="another training has taken over"):
        lose_it()
    assert "run/checkpoints.json" not in store.names("run/")


@pytest.mark.skipif(checks_signatures(), reason="the proxy removes headers, which this store's signatures cover")
def test_a_store_that_ignores_conditions_is_warned_of(store, open_run, tmp_path, capfd):
    store.drops_conditions = True
    run_steps(open_run, tmp_path / "one", 1)
    assert "cannot keep two trainings apart" in capfd.readouterr().err
    assert index_of(store)["last"][0]["step"] == 1


def test_a_request_to_stop_does_not_wait_for_a_store_that_is_silent(store, open_run, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_run, "SECONDS_AFTER_STOP", 2.0)
    run_steps(open_run, tmp_path / "one", 1)
    store.stall_seconds = 60
    store.faults = lambda method, path, number: "stall" if method == "PUT" and "last-000002" in path else None
    monkeypatch.setattr(remote_run, "UPLOAD_PATIENCE", Patience(5, seconds=60))
    begun = time.monotonic()

    def save_and_stop() -> None:
        with open_run(tmp_path / "one") as (_, _, save):
            save(2)
            raise StopRequested("received SIGTERM")

    with pytest.raises(UnavailableError, match=r"received SIGTERM; .* has step 1, and"):
        save_and_stop()
    assert time.monotonic() - begun < 30


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_upload(store, open_run, tmp_path, capfd):
    store.faults = lambda method, path, number: "cut" if method == "PUT" and "last-000002" in path else None

    def save_and_fail() -> None:
        with open_run(tmp_path / "one") as (_, _, save):
            save(2)
            raise RunError("the loss is nan")

    with pytest.raises(RunError, match=r"^the loss is nan$"):
        save_and_fail()
    assert "has no checkpoint" in capfd.readouterr().err


def test_only_the_newest_waits_where_uploads_are_slow(store, open_run, tmp_path):
    gate = threading.Event()
    gate.set()
    store.faults = lambda method, path, number: (gate.wait(30), None)[1]
    with open_run(tmp_path / "one") as (_, uploader, save):
        gate.clear()
        for step in (1, 2, 3, 4):
            save(step)
        gate.set()
        uploader.wait()
        assert uploader.newest_step == 4
    names = {path.split("/")[4] for method, path in store.requests if method == "PUT" and "/checkpoints/" in path}
    assert "last-000004" in names
    assert len(names) <= 2


BAD_INDEXES = [
    b"",
    b"[]",
    b"{}",
    b'{"format_version": 2}',
    b'{"format_version": 1, "run": "a", "last": [{"name": "../x", "step": 1, "manifest": "%s"}], "best": [], '
    b'"metrics": [], "writes": 1}' % (b"a" * 64),
    b'{"format_version": 1, "run": "a", "last": [{"name": "last-000001", "step": -1, "manifest": "%s"}], "best": [], '
    b'"metrics": [], "writes": 1}' % (b"a" * 64),
    b'{"format_version": 1, "run": "a", "last": [], "best": [], "metrics": [{"name": "/etc/passwd", "bytes": 1, '
    b'"sha256": "%s"}], "writes": 1}' % (b"a" * 64),
]


@pytest.mark.parametrize("data", BAD_INDEXES, ids=range(len(BAD_INDEXES)))
def test_a_list_of_checkpoints_that_no_run_writes_is_refused(data):
    with pytest.raises(InputError) as refused:
        parse_index(data, "s3://cells/run/checkpoints.json")
    assert len(one_line(refused.value)) <= 500
