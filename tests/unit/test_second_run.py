"""A second prediction into the same folder skips what is done, whatever ended the first; and what is done is what one
run would have made."""

import copy
import csv
import errno
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from helpers import command, draw_sample, save_state, start, tiny_config
from rich.console import Console

from glioma_dist.config import PredictConfig
from glioma_dist.data.images.choice import Choice
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import DiskFullError, ExitCode, InputError
from glioma_dist.inference import progress, record
from glioma_dist.inference.pictures import find_pictures
from glioma_dist.inference.predict import predict
from glioma_dist.inference.record import Place
from glioma_dist.inference.result_folder import Results
from glioma_dist.inference.work import find_work
from glioma_dist.model.unet import build_model
from glioma_dist.size import Size
from glioma_dist.training.state import TrainState

NAMES = ["a", "b", "stack-p001", "stack-p002", "stack-p003"]


@pytest.fixture(scope="module")
def checkpoints(shards, tmp_path_factory) -> list[Path]:
    """Two, of other weights."""
    found = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("run")
        config = tiny_config(shards, folder, transform="random-crop")
        model, _ = build_model(config.model, seed)
        save_state(folder / "best", config, TrainState(step=1), model, None, {"lineage": []})
        found.append(folder / "best")
    return found


@pytest.fixture(scope="module")
def first(checkpoints, tmp_path_factory, runtime) -> PredictConfig:
    """Two PNGs and a stack of three pages, segmented once."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "in").mkdir()
    for number, name in enumerate("ab"):
        cv2.imwrite(str(folder / f"in/{name}.png"), draw_sample(number).image)
    stack = np.stack([draw_sample(number).image for number in (2, 3, 4)])
    tifffile.imwrite(folder / "in/stack.tif", stack, photometric="minisblack", metadata=None)
    config = PredictConfig(checkpoints[0], str(folder / "in"), folder / "out")
    predict(config, runtime)
    return config


@pytest.fixture
def config(first, tmp_path) -> PredictConfig:
    """The same images, and no results yet."""
    shutil.copytree(first.images, tmp_path / "in")
    return replace(first, images=str(tmp_path / "in"), out=tmp_path / "out")


@pytest.fixture
def again(first, tmp_path) -> PredictConfig:
    """The same images, with a copy of their results."""
    shutil.copytree(first.out, tmp_path / "again")
    return replace(first, out=tmp_path / "again")


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def results(out: Path) -> dict[str, bytes]:
    """What is there beside the record, and hidden files."""
    return {path.name: path.read_bytes() for path in out.glob("[!.]*") if path.name != "predict.json"}


def times(out: Path) -> dict[str, int]:
    return {path.name.partition(".mask")[0]: path.stat().st_mtime_ns for path in out.glob("*.mask.png")}


def redone(out: Path, before: dict[str, int]) -> list[str]:
    """The names of the results that were written again."""
    return sorted(name for name, time in times(out).items() if before.get(name) != time)


def test_a_second_run_does_nothing_and_returns_the_same(first, runtime, capsys):
    whole, before = results(first.out), times(first.out)
    assert [row["mask"] for row in table(first.out)] == [f"{name}.mask.png" for name in NAMES]
    second = predict(first, runtime)
    rows = [{name: "" if value is None else str(value) for name, value in each.row().items()} for each in second.images]
    assert rows == table(first.out)
    assert results(first.out) == whole
    assert redone(first.out, before) == []
    assert "5 of 5 images are done already: skipped; --redo" in capsys.readouterr().out


def _damage_record(config: PredictConfig, content: str) -> PredictConfig:
    (config.out / "predict.json").write_text(content)
    return config


def _remove(config: PredictConfig, name: str) -> PredictConfig:
    (config.out / name).unlink()
    return config


def _change_entries(config: PredictConfig, **changes) -> PredictConfig:
    told = json.loads((config.out / "predict.json").read_text())
    for entry in told["images"].values():
        entry.update(changes)
    return _damage_record(config, json.dumps(told))


CHANGES = {
    "nothing": (lambda config, _: config, []),
    "redo": (lambda config, _: replace(config, redo=True), NAMES),
    "the threshold": (lambda config, _: replace(config, threshold=0.6), NAMES),
    "the input size": (lambda config, _: replace(config, input_size=Size(64, 64)), NAMES),
    "the checkpoint": (lambda config, checkpoints: replace(config, checkpoint=checkpoints[1]), NAMES),
    "a mask that is gone": (lambda config, _: _remove(config, "b.mask.png"), ["b"]),
    "an overlay that is gone": (lambda config, _: _remove(config, "stack-p002.overlay.png"), ["stack-p002"]),
    "no record": (lambda config, _: _remove(config, "predict.json"), NAMES),
    "a record of another version": (lambda config, _: _damage_record(config, _of_version(99)), NAMES),
    "rows of another version": (lambda config, _: _change_entries(config, row={"x": {"result": "a"}}), NAMES),
    "damaged entries": (lambda config, _: _change_entries(config, row=7), NAMES),
    "another kind of result wanted": (lambda config, _: _change_entries(config, kinds=["mask"]), NAMES),
}


def _of_version(number: int) -> str:
    return json.dumps({"format_version": number, "images": {}, "settings": {}, "checkpoints": {}})


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_made_again_and_nothing_else(first, again, checkpoints, runtime, what):
    before = times(again.out)
    change, names = CHANGES[what]
    changed = change(again, checkpoints)
    predict(changed, runtime)
    assert redone(again.out, before) == names
    if "threshold" in what or "size" in what or "checkpoint" in what:
        changed = replace(changed, out=again.out.with_name("other"))
        predict(changed, runtime)
        assert results(again.out) == results(changed.out)
    else:
        assert results(again.out) == results(first.out)


def test_a_file_that_has_changed_is_done_again(config, runtime):
    predict(config, runtime)
    before = times(config.out)
    path = Path(config.images) / "a.png"
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    predict(config, runtime)
    assert redone(config.out, before) == ["a"]


def test_changed_settings_are_named(again, checkpoints, runtime, capsys):
    predict(replace(again, images=f"{again.images}/a.png", threshold=0.6, checkpoint=checkpoints[1]), runtime)
    assert (
        "settings have changed (another checkpoint, --threshold was 0.5, is 0.6): 1 image segmented again\n"
        in capsys.readouterr().out
    )


def test_results_of_other_settings_that_a_run_does_not_replace_are_named(config, runtime, capsys):
    one = replace(config, images=f"{config.images}/a.png")
    predict(replace(one, write=("mask", "labels")), runtime)
    predict(replace(one, threshold=0.6, write=("mask",)), runtime)
    told = capsys.readouterr().out
    assert "1 image segmented again; labels there keep the earlier settings: --write does not name them" in told


def test_images_of_other_settings_are_omitted_from_the_table_with_a_word_and_come_back(
    again, checkpoints, runtime, capsys
):
    def recorded() -> list[str]:
        told = json.loads((again.out / "predict.json").read_text())
        return [each["path"] for each in told["checkpoints"].values()]

    predict(replace(again, images=f"{again.images}/a.png", checkpoint=checkpoints[1], threshold=0.6), runtime)
    assert recorded() == [str(each) for each in checkpoints], "the last one is that of the table"
    assert "summary.csv omits 4 images of earlier runs with other settings" in capsys.readouterr().out
    before = times(again.out)
    predict(again, runtime)
    assert redone(again.out, before) == ["a"]
    assert recorded() == [str(checkpoints[0])]
    assert [row["mask"] for row in table(again.out)] == [f"{name}.mask.png" for name in NAMES]


def test_a_mask_that_somebody_has_edited_is_neither_taken_nor_replaced(again, runtime):
    cv2.imwrite(str(again.out / "a.mask.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match=r"did not write, the first is a\.mask\.png"):
        predict(again, runtime)


def test_a_file_of_the_users_is_not_taken_for_the_record(config, runtime):
    config.out.mkdir()
    for content in ("{}", "[1]", "no JSON", '{"images": 3, "settings": {}, "checkpoints": {}}'):
        (config.out / "predict.json").write_text(content)
        with pytest.raises(InputError, match=r"predict\.json: is no"):
            predict(config, runtime)
        assert (config.out / "predict.json").read_text() == content


def parts(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The place of each part of a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from parts(value[key], (*path, key))


def test_any_value_in_place_of_any_other_in_the_record_is_taken_or_refused(again):
    """Of one image."""
    path = again.out / "predict.json"
    told = json.loads(path.read_text())
    told["images"] = {"a": told["images"]["a"]}
    (settings,) = told["settings"].values()
    pictures = find_pictures([Path(again.images) / "a.png"], Choice())
    path.write_text(json.dumps(told))
    assert find_work(pictures, Place(again.out), settings, ("mask",), False).done.keys() == {"a"}
    for place in parts(told):
        for odd in (None, 0, 1.5, "", "../x", "a\0b", [], [[]], {}, {"result": 5}, {"path": None}, {"x": {}}, True):
            changed: dict = {"": copy.deepcopy(told)}
            inner = changed
            for key in ("", *place)[:-1]:
                inner = inner[key]
            inner[("", *place)[-1]] = odd
            path.write_text(json.dumps(changed[""]))
            with suppress(InputError):
                find_work(pictures, Place(again.out), settings, ("mask",), False)


def test_the_table_lists_the_images_of_all_runs_with_the_same_settings(config, runtime, capsys):
    single = replace(config, images=str(Path(config.images) / "a.png"))
    predict(single, runtime)
    predict(replace(config, images=str(Path(config.images) / "*.tif"), page="2"), runtime)
    assert [row["mask"] for row in table(config.out)] == ["a.mask.png", "stack-p002.mask.png"]
    assert "summary.csv also lists 1 image of earlier runs" in capsys.readouterr().out
    predict(replace(single, threshold=0.6), runtime)
    assert [row["mask"] for row in table(config.out)] == ["a.mask.png"]


def test_two_runs_at_once_into_one_folder_list_the_images_of_both(config, runtime, monkeypatch):
    """One begins and ends while the other is at work, which has known nothing of it."""
    one, other = (replace(config, images=f"{config.images}/{name}.png") for name in "ab")
    opened = Results.opened
    others = [other]

    @contextmanager
    def late(self) -> Iterator[None]:
        with opened(self):
            if others:
                predict(others.pop(), runtime)
            yield

    monkeypatch.setattr(Results, "opened", late)
    monkeypatch.setattr(record, "SECONDS_BETWEEN_WRITES", 0.0)
    assert len(predict(one, runtime).images) == 1
    assert [row["mask"] for row in table(config.out)] == ["a.mask.png", "b.mask.png"]
    before = times(config.out)
    predict(config, runtime)
    assert redone(config.out, before) == ["stack-p001", "stack-p002", "stack-p003"]


def test_a_run_that_writes_no_files_is_recorded_as_any_other(config, runtime, capsys):
    for name in "ab":
        predict(replace(config, images=f"{config.images}/{name}.png", write=()), runtime)
    assert [Path(row["image"]).name for row in table(config.out)] == ["a.png", "b.png"]
    predict(replace(config, write=()), runtime)
    assert "2 of 5 images are done already" in capsys.readouterr().out
    predict(config, runtime)
    assert [row["mask"] for row in table(config.out)] == [f"{name}.mask.png" for name in NAMES]


def test_an_image_that_fails_now_loses_its_old_row_only_where_its_file_has_changed(config, runtime):
    predict(config, runtime)
    whole = table(config.out)
    with pytest.raises(InputError, match="no channel red; it has one channel"):
        predict(replace(config, channel="red"), runtime)
    assert table(config.out) == whole
    (Path(config.images) / "a.png").write_bytes(b"no image")
    result = predict(config, runtime)
    assert [Path(failure.image).name for failure in result.failed] == ["a.png"]
    assert table(config.out) == whole[1:]
    assert "a" not in json.loads((config.out / "predict.json").read_text())["images"]


def end_at(config: PredictConfig, images: int, number: int) -> None:
    """Predict, and end by SIGKILL at the `number`-th write to the disk after some images were recorded."""
    record.SECONDS_BETWEEN_WRITES, record.WRITING_SHARE = 0.0, float("inf")
    recorded, written, sync, add = [], [], os.fsync, record.RecordWriter.add

    def count(descriptor: int) -> None:
        written.append(descriptor)
        if (len(recorded), len(written)) == (images, number):
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    def count_recorded(self, name: str, entry: dict) -> None:
        add(self, name, entry)
        recorded.append(name)
        written.clear()

    os.fsync, record.RecordWriter.add = count, count_recorded
    predict(config)


@pytest.mark.parametrize(("images", "number"), [(0, 1), (0, 3), (1, 1), (3, 2), (4, 3), (5, 1), (5, 3)])
def test_a_killed_run_leaves_whole_files_and_the_same_command_finishes(first, config, runtime, images, number):
    """After the last image the table and the record are written."""
    (ended,) = start(end_at, config, images, number).wait()
    assert ended.exit_code == -signal.SIGKILL
    for path in config.out.iterdir():
        if path.suffix == ".png":
            assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None
        elif not path.name.startswith("."):
            assert path.name in ("predict.json", "summary.csv")
            json.loads(path.read_text()) if path.suffix == ".json" else table(config.out)
    before = times(config.out)
    predict(config, runtime)
    num_kept = len(NAMES) - len(redone(config.out, before))
    assert num_kept in (images, images + 1)  # one more where the record was on the disk already
    whole = results(config.out)
    assert whole.pop("summary.csv").replace(b"\r", b"").count(b"\n") == 1 + len(NAMES)
    assert whole == {name: data for name, data in results(first.out).items() if name != "summary.csv"}


def stop_after(config: PredictConfig, images: int) -> None:
    """Predict as a command does, and get SIGTERM when some images were recorded."""
    add, recorded = record.RecordWriter.add, []

    def count_recorded(self, name: str, entry: dict) -> None:
        add(self, name, entry)
        recorded.append(name)
        if len(recorded) == images:
            os.kill(os.getpid(), signal.SIGTERM)

    record.RecordWriter.add = count_recorded
    run_command(lambda: predict(config) and None)


def test_a_stopped_run_says_how_far_it_came_and_how_to_continue(first, config, runtime):
    (ended,) = start(stop_after, config, 2).wait()
    assert ended.exit_code == ExitCode.STOPPED
    told = r"stopped: received SIGTERM, [12] of 5 images done\. Run the same command to continue\."
    assert re.search(told, ended.stderr), ended.stderr
    predict(config, runtime)
    assert set(results(config.out)) == set(results(first.out))


def test_temporary_files_of_a_run_that_was_killed_are_removed_when_they_are_old(config, runtime):
    config.out.mkdir()
    old, new, own = (config.out / f".{name * 16}.partial" for name in "01z")
    old_folder, used_folder = (config.out / f".{name * 16}.partial" for name in "23")
    for folder in (old_folder, used_folder):  # of a file system without locks, where no later run takes them over
        folder.mkdir()
    inside = [folder / "result.mask.png" for folder in (old_folder, used_folder)]
    for path in (old, new, own, *inside):
        path.touch()
    for path in (old, own, inside[0], old_folder, used_folder):
        os.utime(path, (0, 0))
    predict(config, runtime)
    assert [path.exists() for path in (old, new, own, old_folder, used_folder)] == [False, True, True, False, True]


def test_a_disk_that_is_full_for_the_record_stops_the_run_and_the_next_one_finishes(config, runtime, monkeypatch):
    monkeypatch.setattr(record, "SECONDS_BETWEEN_WRITES", 0.0)
    replaced = os.replace

    def full(old, new) -> None:
        if Path(new).name == "predict.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replaced(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(DiskFullError, match=r"predict\.json: the disk is full"):
            predict(config, runtime)
    assert len(predict(config, runtime).images) == 5


def predict_here(config: PredictConfig) -> list[str]:
    return [image.row()["mask"] for image in predict(config).images]


def test_two_processes_share_planes_and_leave_one_record(config, runtime):
    ended = start(predict_here, config, num_processes=2).wait()
    assert [end.exit_code for end in ended] == [0, 0], ended[0].stderr[-2000:]
    assert [end.value for end in ended] == [[f"{name}.mask.png" for name in NAMES]] * 2
    assert sorted(path.name for path in config.out.glob("*.json")) == ["predict.json"]
    before = times(config.out)
    (config.out / "predict-00007.json").write_text((config.out / "predict.json").read_text())
    (config.out / "predict.json").unlink()  # as a launch that was killed leaves it
    predict(config, runtime)
    assert redone(config.out, before) == []
    assert sorted(path.name for path in config.out.glob("*.json")) == ["predict.json"]


def test_a_broken_plane_among_many_is_named_at_the_end_and_the_rest_is_done(config):
    path = Path(config.images) / "stack.tif"
    tifffile.imwrite(path, np.stack([draw_sample(2).image] * 3), compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[1].dataoffsets[0]
    with open(path, "r+b") as file:
        file.seek(offset + 40)
        file.write(bytes(30))
    (Path(config.images) / "z.zarr").mkdir()
    arguments = ("--checkpoint", config.checkpoint, "--images", config.images, "--out", config.out)
    ended = command("predict", *arguments)
    if "not installed" in ended.stderr:
        pytest.skip("the extra formats is not installed")
    assert ended.exit_code == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: 2 of 6 images failed (2 not read), the others are done")
    assert "stack.tif (p002): the TIFF's pixels cannot be decoded" in line
    assert "z.zarr: no Zarr group there" in line
    assert len(table(config.out)) == 4


def test_a_log_file_gets_a_line_now_and_then_with_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.PredictionProgress(1000) as told:
        for number in range(1000):
            now[0] += 0.5
            told.finished(None if number == 3 else "a: confluence 1 %")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 49
    assert lines[0] == "20 of 1000 images, 0.5 s an image, about 0:08:10 left, 1 failed"
    assert lines[-1].startswith("980 of 1000 images, 0.5 s an image, about 0:00:10 left")
    with progress.PredictionProgress(3) as told:
        told.finished("a: confluence 1 %")
    assert capsys.readouterr().out == "a: confluence 1 %\n"


def test_a_name_is_shown_on_a_terminal_as_it_is(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(progress, "Console", partial(Console, file=shown, force_terminal=True, width=200))
    with progress.PredictionProgress(2) as told:
        told.say("plate:a:1 [red]x.tif: confluence 1 %")
    assert "plate:a:1 [red]x.tif: confluence 1 %" in shown.getvalue()
