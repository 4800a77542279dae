"""Trackers: what they are sent, that a resumed run continues theirs, and that none can hold, stop or change a run."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from forks import wait_until
from helpers import draw_shards, rows, run, start, tiny_config

from glioma_dist import extras
from glioma_dist.config import TrainConfig
from glioma_dist.distributed import leaving
from glioma_dist.errors import InputError
from glioma_dist.registry import UnknownNameError, trackers
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.training.loop import train
from glioma_dist.training.overlays import MAX_SIDE, PREDICTED, REFERENCE, Overlays, draw_overlay
from glioma_dist.training.run_record import RUN
from glioma_dist.training.trackers import sending
from glioma_dist.training.trackers.contract import TrackedRun, Tracker
from glioma_dist.training.trackers.names import DECLARED, FOLDER, IDS
from glioma_dist.training.trackers.sending import Trackers, Warnings, flat_config

METHODS = ("open", "store_config", "log", "log_images", "finish")
FAILURES: dict[str, Callable[[], None]] = {
    "disk full": lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    "a fault of the library": lambda: {}["x"],
    "it ends the program": lambda: sys.exit(3),
    "no memory": lambda: (_ for _ in ()).throw(MemoryError()),
    "no answer": lambda: time.sleep(60),
}


class Recorder(Tracker):
    """Keeps what it gets."""

    opened: ClassVar[list["Recorder"]] = []

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.calls, self.threads = run, [], set()
        self.run_id = run.run_id or "number 7"
        self.opened.append(self)

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())

    def store_config(self, config):
        self._note("config", config)

    def log(self, values, step):
        self._note("log", values, step)

    def log_images(self, images, step):
        self._note("images", images, step)

    def finish(self):
        self._note("finish")


@pytest.fixture
def own() -> Iterator[type[Recorder]]:
    """A registered tracker, the names `recorder` and `other`."""
    Recorder.opened = []
    for name in ("recorder", "other"):
        trackers.register(name, Recorder)
    yield Recorder
    for name in ("recorder", "other"):
        del trackers._added[name]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    draw_shards(folder / "train", range(6))
    draw_shards(folder / "val", range(6, 11))
    return folder


def tracked(material: Path, out: Path, **changes) -> TrainConfig:
    return tiny_config(material, out, batch_size=2, max_steps=4, eval_every=2, **changes)


def test_trackers_get_what_metrics_gets_and_change_no_bit(material, tmp_path, own):
    config = tracked(material, tmp_path / "run", track=("recorder", "other"))
    train(config)
    train(replace(config, out=tmp_path / "plain", track=()))
    assert rows(tmp_path / "run") == rows(tmp_path / "plain")
    weights = [(tmp_path / name / "last/model.safetensors").read_bytes() for name in ("run", "plain")]
    assert weights[0] == weights[1]
    assert [each.run.tracker for each in own.opened] == ["recorder", "other"]
    for recorder in own.opened:
        first, *middle, last = recorder.calls
        assert (first[0], last, len(recorder.threads)) == ("config", ("finish",), 1)
        assert threading.get_ident() not in recorder.threads
        # Of these classes and none derived from them, as torch.__version__ is: some libraries cannot write others.
        assert {type(each) for each in first[1].values()} <= {bool, int, float, str}
        assert {type(each) for name, *values in middle if name == "log" for each in values[0].values()} <= {int, float}
        lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        logged = [call for call in middle if call[0] == "log"]
        for line, (_, values, step) in zip(lines, logged, strict=True):
            part = line.get("split", "train")
            assert (values[f"{part}/loss"], values[f"{part}/dice"], step) == (line["loss"], line["dice"], line["step"])
            if part == "train":
                speed = ("images_per_second", "step_seconds", "data_wait_share")
                assert [values[f"speed/{name}"] for name in speed] == [line[name] for name in speed]
                assert (values["train/lr"], values["train/epoch"]) == (config.lr, line["epoch"])
                assert 0 < values["memory/resident_gib"] <= values["memory/peak_gib"] < 1000
        pictures = [call for call in middle if call[0] == "images"]
        assert [step for *_, step in pictures] == [2, 4]
        for _, images, _ in pictures:
            assert list(images) == ["val/overlay_1", "val/overlay_2", "val/overlay_3"]
            assert {(each.shape, each.dtype.name) for each in images.values()} == {((64, 64, 3), "uint8")}


def test_a_resumed_run_continues_the_trackers_run(material, tmp_path, own):
    config = tracked(material, tmp_path / "run", track=("recorder",))
    train(replace(config, max_steps=2))
    assert json.loads((tmp_path / "run" / IDS).read_text()) == {"recorder": "number 7"}
    train(replace(config, track=("recorder", "other")))
    first, second, other = (each.run for each in own.opened)
    assert (first.step, first.run_id) == (0, None)
    assert (second.step, second.run_id, other.run_id) == (2, "number 7", None)
    assert first.name == "run"
    assert first.folder == tmp_path / "run" / FOLDER
    assert [each["track"] for each in json.loads((tmp_path / "run" / RUN).read_text())["starts"]] == [
        ["recorder"],
        ["recorder", "other"],
    ]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"recorder": 7}', b"\xff", b"{}" + b" " * 2**17, None])
def test_damaged_ids_are_named_and_begin_new_runs(content, tmp_path, own):
    said = []
    (tmp_path / IDS).write_bytes(content) if content is not None else (tmp_path / IDS).mkdir()
    all_of_a_run = Trackers()
    all_of_a_run.open(("recorder",), tmp_path, 3, {}, Warnings(said.append, lambda: None))
    all_of_a_run.close(True)
    assert own.opened[0].run.run_id is None
    assert len(said) == 1
    assert str(tmp_path / IDS) in said[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_tracker_that_fails_is_one_warning(method, failure, tmp_path, own, monkeypatch):
    """Whatever it does, and wherever: the other tracker gets all, and nothing is raised or waited for."""

    class Failing(Recorder):
        def __init__(self, run: TrackedRun) -> None:
            if method == "open":
                FAILURES[failure]()
            super().__init__(run)

        def _note(self, kind: str, *values: object) -> None:
            if kind == {"store_config": "config", "log_images": "images"}.get(method, method):
                FAILURES[failure]()
            super()._note(kind, *values)

    monkeypatch.setattr(sending, "SECONDS_AT_END", 0.5 if failure == "no answer" else 60)
    monkeypatch.setattr(leaving, "_given_up", False)
    trackers.register("failing", Failing)
    said = []
    try:
        both = Trackers()
        both.open(("failing", "recorder"), tmp_path, 0, {"a": 1}, Warnings(said.append, lambda: None))
        begun = time.monotonic()
        for step in range(1, 4):
            both.log({"train/loss": 0.5}, step)
            both.log_images(lambda: {"x": np.zeros((4, 4, 3), np.uint8)}, step)
        assert time.monotonic() - begun < 20, "it held the run"
        wait_until(lambda: 7 in [len(each.calls) for each in own.opened if type(each) is Recorder], what="the other")
        both.close(has_finished=True)
        assert time.monotonic() - begun < 40
    finally:
        del trackers._added["failing"]
    assert len(said) == 1, said
    assert said[0].startswith("--track failing: ")
    assert len(said[0]) <= 500
    assert leaving._given_up, "Python's exit has no bound"
    (other,) = (each for each in own.opened if type(each) is Recorder)
    assert [call[0] for call in other.calls] == ["config", *("log", "images") * 3, "finish"]


def test_a_tracker_that_cannot_be_loaded_is_one_warning(material, tmp_path, capsys):
    trackers.register("broken", "no_module_of_this_name:open")
    try:
        train(tracked(material, tmp_path / "run", track=("broken",), val=None))
    finally:
        del trackers._added["broken"]
        leaving._given_up = False
    error = capsys.readouterr().err
    assert error.count("warning: --track broken: BrokenEntryError") == 1
    assert len(rows(tmp_path / "run")) == 4


def test_a_tracker_that_does_not_keep_up_is_given_up(tmp_path, own, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(Recorder, "log", lambda *_: gate.wait(60))
    monkeypatch.setattr(leaving, "_given_up", False)
    said = []
    one = Trackers()
    one.open(("recorder",), tmp_path, 0, {}, Warnings(said.append, lambda: None))
    for step in range(5000):
        one.log({}, step)
    gate.set()
    one.close(True)
    assert len(said) == 1
    assert "4096 calls behind the run" in said[0]
    assert not one.are_there


@pytest.mark.parametrize("name", trackers.names())
def test_a_missing_library_is_one_line_with_its_command(name, monkeypatch, tmp_path):
    entry = trackers.find(name)
    monkeypatch.setitem(sys.modules, entry.library, None)
    command = f"pip install '{entry.package}'" if entry.package else extras.install_command(name)
    with pytest.raises(InputError) as caught:
        replace(tiny_config(tmp_path, tmp_path / "run"), track=(name,)).validate()
    assert str(caught.value) == f"--track {name}: {entry.library} not installed; run {command}"


def test_a_folder_of_a_librarys_name_is_no_library(tmp_path, monkeypatch):
    """wandb leaves a folder `wandb` where it runs."""
    (tmp_path / "a_tracker_nobody_has").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert util.find_spec("a_tracker_nobody_has") is not None
    with pytest.raises(InputError, match="not installed; run pip install 'a-tracker'"):
        extras.require_library("a_tracker_nobody_has", "a-tracker", "--track x")


def test_names_and_prices_that_cannot_be_used_are_refused(tmp_path, own):
    config = tiny_config(tmp_path, tmp_path / "run")
    with pytest.raises(UnknownNameError, match="--track tensorbord: unknown; did you mean tensorboard"):
        replace(config, track=("tensorbord",)).validate()
    with pytest.raises(InputError, match="--track recorder recorder: name each tracker once"):
        replace(config, track=("recorder", "recorder")).validate()
    for price in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"--price-per-hour {price}: give a number above 0"):
            replace(config, price_per_hour=price).validate()


def test_settings_are_single_values_by_dotted_name(tmp_path):
    flat = flat_config(
        tiny_config(tmp_path, tmp_path / "run"), {"engine": "DDP", "versions": {"torch": torch.__version__, "x": None}}
    )
    assert flat["data.size"] == "64x64"
    assert flat["data.augment"] == "flips sharpen contrast"
    assert (flat["lr"], flat["max_steps"], flat["clip_norm"]) == (1e-3, 6, "none")
    assert (flat["start.engine"], flat["start.versions.x"], flat["start.processes"]) == ("DDP", "none", 0)
    assert {type(each) for each in flat.values()} <= {bool, int, float, str}


def test_secrets_of_urls_are_not_sent(tmp_path):
    urls = ("https://ann:hunter2@host/a?sig=hunter2", "s3://key:hunter2@bucket/b")
    config = tiny_config(tmp_path, tmp_path / "run?", train=urls, val="https://host/c?token=hunter2")
    flat = flat_config(config, {"scale": {"x": "http://u:hunter2@h/"}})
    assert "hunter2" not in str(flat)
    assert (flat["data.val"], flat["out"]) == ("https://host/c", f"{tmp_path}/run?")
    assert flat["data.train"].endswith("@bucket/b")


def test_an_overlay_shows_both_outlines_and_leaves_the_rest():
    part = np.full((3, 40, 60), 100, np.uint8)
    part[1:] = 0
    part[1, 5:15, 5:15] = 1
    part[2, 20:30, 30:50] = 1
    picture = draw_overlay(part)
    assert picture.shape == (40, 60, 3)
    for mask, colour in ((part[1], REFERENCE), (part[2], PREDICTED)):
        edge = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
        assert (picture[edge > 0] == colour).all()
        picture[edge > 0] = 100
    assert (picture == 100).all()
    tall = np.zeros((5, 3 * MAX_SIDE, 90), np.uint8)
    tall[4, :1000] = 1
    assert draw_overlay(tall).shape == (MAX_SIDE, 30, 3)


def test_overlays_are_of_the_first_images_of_each_validation():
    overlays = Overlays()
    overlays.are_wanted = True
    for value in (10, 20):
        overlays.begin()
        for number in range(5):
            image = torch.full((1, 1, 8, 8), value + number, dtype=torch.uint8)
            overlays.add(image, image[:, 0] * 0, image[:, 0] * 0, SpatialGroup())
        assert [each[0, 0, 0] for each in overlays.drawing()().values()] == [value, value + 1, value + 2]


def overlays_of_two(material: Path, out: Path) -> dict:
    """In each of two processes that share every image: what a tracker gets."""
    from glioma_dist.config import ScaleConfig
    from glioma_dist.distributed.context import DistributedContext

    trackers.register("recorder", Recorder)
    here = DistributedContext.start()
    scale = ScaleConfig(spatial_parallel=here.num_processes)
    train(replace(tracked(material, out, track=("recorder",)), scale=scale), here)
    calls = [call for each in Recorder.opened for call in each.calls if call[0] == "images"]
    return {(step, name): image for _, images, step in calls for name, image in images.items()}


@pytest.mark.slow  # three processes
def test_processes_that_share_an_image_show_the_whole_of_it(material, tmp_path):
    (alone,) = run(overlays_of_two, material, tmp_path / "one")
    first, second = run(overlays_of_two, material, tmp_path / "two", num_processes=2)
    assert second == {}, "trackers are the first process's"
    assert first.keys() == alone.keys()
    assert len(alone) == 6
    for key, image in alone.items():
        assert first[key].shape == image.shape
        assert (first[key] == image).mean() > 0.99  # a logit at 0 may round to the other side


def tensorboard_of(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def track_with(name: str, material: Path, out: Path) -> None:
    """A run that is killed after step 3, with a checkpoint of step 2, and resumed: in fresh processes."""
    config = tracked(material, out, track=(name,))
    train(replace(config, max_steps=2))
    # What a killed start has told its tracker beyond the checkpoint.
    killed = Trackers()
    killed.open((name,), out, 2, {}, Warnings(print, lambda: None))
    killed.log({"train/loss": 0.25, "train/dice": 0.5}, 3)
    killed.close(True)
    train(config)


def test_tensorboard_reads_back_what_was_logged(material, tmp_path):
    pytest.importorskip("tensorboard", reason="of the extra `tensorboard`")
    out = tmp_path / "run"
    run(track_with, "tensorboard", material, out)
    found = tensorboard_of(out / FOLDER / "tensorboard")
    for part in ("train", "val"):
        expected = [row for row in rows(out) if row.get("split", "train") == part]
        for name in ("loss", "dice"):
            events = found.Scalars(f"{part}/{name}")
            assert [each.step for each in events] == [row["step"] for row in expected]
            assert [each.value for each in events] == [float(np.float32(row[name])) for row in expected]
    assert [each.step for each in found.Images("val/overlay_3")] == [2, 4]
    picture = np.frombuffer(found.Images("val/overlay_3")[0].encoded_image_string, np.uint8)
    assert cv2.imdecode(picture, cv2.IMREAD_COLOR).shape == (64, 64, 3)
    (settings,) = (out / FOLDER / "tensorboard").glob("*/hparams.yml")
    assert "data.size: 64x64" in settings.read_text()


def test_mlflow_reads_back_what_was_logged(material, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="of the extra `mlflow`")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "run"
    run(track_with, "mlflow", material, out)
    client = mlflow.MlflowClient((out / FOLDER / "mlruns").as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name == "glioma-dist"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == json.loads((out / IDS).read_text())["mlflow"]
    assert found.data.params["data.size"] == "64x64"
    for part in ("train", "val"):
        expected = {row["step"]: row["loss"] for row in rows(out) if row.get("split", "train") == part}
        history = client.get_metric_history(found.info.run_id, f"{part}/loss")
        assert {each.step: each.value for each in sorted(history, key=lambda each: each.timestamp)} == expected
    pictures = client.list_artifacts(found.info.run_id, "val/overlay_1")
    assert [Path(each.path).name for each in pictures] == ["step_00000002.png", "step_00000004.png"]


def test_wandb_offline_keeps_one_run(material, tmp_path):
    pytest.importorskip("wandb", reason="of the extra `wandb`")
    out = tmp_path / "run"
    run(track_with, "wandb", material, out, environment={"WANDB_MODE": "offline"})
    run_id = json.loads((out / IDS).read_text())["wandb"]
    written = list((out / FOLDER / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {each.stem for each in written} == {f"run-{run_id}"}
    assert all(each.stat().st_size > 1000 for each in written)
    assert len(list((out / FOLDER / "wandb").glob("*/files/media/images/val/overlay_1_*.png"))) == 2


OFFLINE = {
    **{"WANDB_MODE": "offline", "MLFLOW_ALLOW_FILE_STORE": "true", "CLEARML_OFFLINE_MODE": "1"},
    **{"COMET_START_ONLINE": "0", "SWANLAB_MODE": "offline"},
}


def track_in(folder: Path, name: str, material: Path, out: Path) -> None:
    """A run that is stopped and resumed in one process."""
    os.chdir(folder)  # some libraries write where a run is started
    config = tracked(material, out, track=(name,))
    train(replace(config, max_steps=2))
    train(config)


@pytest.mark.parametrize("entry", DECLARED, ids=lambda entry: entry.name)
def test_every_tracker_takes_all_that_it_is_sent(entry, material, tmp_path):
    pytest.importorskip(entry.library, reason=f"of the tracker {entry.name}")
    folders = {name: str(tmp_path) for name in ("HOME", "TRACKIO_DIR", "COMET_OFFLINE_DIRECTORY")}
    (ended,) = start(track_in, tmp_path, entry.name, material, tmp_path / "run", environment=OFFLINE | folders).wait()
    assert ended.exit_code == 0, ended.stderr[-3000:]
    assert "--track" not in ended.stdout + ended.stderr


def test_a_run_without_trackers_leaves_nothing_of_them(material, tmp_path):
    before = set(threading.enumerate())
    train(tracked(material, tmp_path / "run"))
    assert not {IDS, FOLDER} & set(os.listdir(tmp_path / "run"))
    assert not [each.name for each in set(threading.enumerate()) - before if "tracker" in each.name]
