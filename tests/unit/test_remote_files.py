"""Checkpoints, images and results at URLs: predict, evaluate, export, starting weights."""

import json
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import draw_sample, save_state, tiny_config

from glioma_dist.cli import export as export_command
from glioma_dist.cli.run_status import find_status
from glioma_dist.config import EvaluateConfig, PredictConfig, ReportConfig
from glioma_dist.config.paths import Url
from glioma_dist.data import cache_folder
from glioma_dist.data.remote_checkpoint import CheckpointIndex, Entry, fetch_checkpoint
from glioma_dist.data.remote_images import list_files
from glioma_dist.data.sample import encode_image
from glioma_dist.data.shards.storage import Patience
from glioma_dist.data.shards.store import PART_BYTES, Store
from glioma_dist.errors import ExitCode, InputError, UnavailableError
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.inference.images import find_images
from glioma_dist.inference.predict import predict
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import MODEL
from glioma_dist.model.unet import build_model
from glioma_dist.report.prediction_page import report_prediction
from glioma_dist.training.launch_and_data import with_local_weights
from glioma_dist.training.state import TrainState

pytestmark = pytest.mark.usefixtures("no_url_becomes_a_folder")
QUICK = Patience(2, seconds=10, wait_seconds=0.01)
PLATES = ("plates/a.png", "plates/b.png", "plates/notes.txt", "plates/deep/c.png", "plates/deep/er/d.png")


@pytest.fixture(scope="module")
def best(shards, tmp_path_factory):
    config = tiny_config(shards, tmp_path_factory.mktemp("run"))
    model, _ = build_model(config.model, 3)
    save_state(config.out / "best", config, TrainState(7, 0.5), model, None, {"lineage": []})
    return config.out / "best"


@pytest.fixture
def store(empty_bucket, best, monkeypatch, tmp_path):
    """With a run at s3://cells/run, its best checkpoint also as a plain folder, and images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = Checkpoint.read(best).manifest.identity
    for path in best.iterdir():
        empty_bucket.put(f"run/checkpoints/best-000007/{path.name}", path.read_bytes())
        empty_bucket.put(f"plain/{path.name}", path.read_bytes())
    index = CheckpointIndex("id", best=(Entry("best-000007", 7, manifest),))
    empty_bucket.put("run/checkpoints.json", index.to_bytes())
    for number, name in enumerate(PLATES):
        empty_bucket.put(name, encode_image(draw_sample(number).image) if name.endswith(".png") else b"x")
    empty_bucket.requests.clear()
    return empty_bucket


@pytest.mark.parametrize("url", ["s3://cells/run/best", "s3://cells/plain", "s3://cells/run/checkpoints/best-000007"])
def test_a_checkpoint_is_fetched_once_and_is_the_same(store, best, url):
    folder = fetch_checkpoint(Url(url))
    again = fetch_checkpoint(Url(url))
    assert again == folder
    assert (folder / MODEL).read_bytes() == (best / MODEL).read_bytes()
    assert sum(path.endswith(MODEL) and method == "GET" for method, path in store.requests) == 1
    Checkpoint.read(folder).check()


@pytest.mark.parametrize("how", ["changed", "shorter"])
def test_a_copy_that_was_damaged_here_is_fetched_again(store, best, how):
    folder = fetch_checkpoint(Url("s3://cells/run/best"))
    data = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:] if how == "changed" else data[:50])
    assert (fetch_checkpoint(Url("s3://cells/run/best")) / MODEL).read_bytes() == data


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://cells/nothing", "no checkpoint there"),
        ("s3://cells/nothing/best", "no checkpoint there"),
        ("s3://nowhere/run/best", "NoSuchBucket|bucket|cannot be read"),
        ("s3://cells/run/last", "has no complete checkpoint yet"),
        ("s3://best", "^s3://best/manifest.json cannot be read.*NoSuchBucket|bucket"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_one_line(store, url, words):
    with pytest.raises(InputError, match=words) as refused:
        fetch_checkpoint(Url(url), QUICK)
    assert refused.value.exit_code == ExitCode.USER_ERROR
    assert url.rpartition("/")[0] in str(refused.value)


def test_a_damaged_one_is_one_line_and_leaves_nothing(store, tmp_path):
    data = bytearray(store.read(f"plain/{MODEL}"))
    data[len(data) // 2] ^= 1
    store.put(f"plain/{MODEL}", bytes(data))
    with pytest.raises(InputError, match=rf"s3://cells/plain/{MODEL}: is damaged"):
        fetch_checkpoint(Url("s3://cells/plain"))
    kept = tmp_path / "cache" / "glioma-dist" / "checkpoints"
    assert [path for path in kept.iterdir() if not path.name.endswith(".lock")] == []


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_the_cache_keeps_a_few_and_those_of_the_last_hour(store, best, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder, "NUM_KEPT", 1)
    first = fetch_checkpoint(Url("s3://cells/plain"))
    manifest = json.loads(store.read("plain/manifest.json"))
    store.put("plain/manifest.json", json.dumps(manifest).encode())
    second = fetch_checkpoint(Url("s3://cells/plain"))
    assert second != first
    Checkpoint.read(first).check()  # another process may have asked for it just now
    age(first, 4000)
    assert fetch_checkpoint(Url("s3://cells/plain")) == second
    assert second.is_dir()
    assert not first.exists()


def test_what_a_killed_fetch_left_is_removed_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder, "NUM_KEPT", 1)
    for name, seconds in ((".new-old", 100_000), (".new-file", 100_000), (".new-now", 100), ("0" * 32, 100_000)):
        if name == ".new-file":
            (tmp_path / name).write_bytes(b"x")
        else:
            (tmp_path / name / "it").mkdir(parents=True)
        age(tmp_path / name, seconds)
    cache_folder.drop_oldest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".new-now", "0" * 32}


def test_starting_weights_may_lie_at_a_url(store, shards, tmp_path, best):
    config = tiny_config(shards, tmp_path, init="s3://cells/run/best")
    model, _ = build_model(with_local_weights(config.model), 0)
    expected, _ = build_model(replace(config.model, init=str(best)), 0)
    for name, value in expected.state_dict().items():
        assert model.state_dict()[name].equal(value), name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("plates", PLATES[:3]),
        ("plates/", PLATES[:3]),
        ("plates/*.png", PLATES[:2]),
        ("plates/[b-z].png", PLATES[1:2]),
        ("plates/?.png", PLATES[:2]),
        ("plates/**/*.png", (*PLATES[:2], *PLATES[3:])),
        ("plates/*/*.png", PLATES[3:4]),
        ("*/a.png", PLATES[:1]),
        ("*/deep?c.png", ()),
        ("*/deep[!x]c.png", ()),
        ("plates/[.a*].png", PLATES[:1]),
        ("plates/a.png", PLATES[:1]),
    ],
)
def test_patterns_are_read_as_for_folders(store, tmp_path, pattern, names):
    """Compared with Python's glob on the same files."""
    import glob

    found = {each.removeprefix("s3://cells/") for each in list_files(Url(f"s3://cells/{pattern}"))}
    for name in PLATES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {name for name in found if name in PLATES}
    assert found == set(names)
    if "*" in pattern or "?" in pattern or "[" in pattern:
        there = {str(Path(each).relative_to(tmp_path)) for each in glob.glob(str(tmp_path / pattern), recursive=True)}
        assert found == there


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("wells/plate[1]", ["img2.png", "img[2].png"]),
        ("wells/plate[1]/*.png", ["img2.png", "img[2].png"]),
        ("wells/plate[1]/img[2].png", ["img[2].png"]),
        ("wells/plate[1]/img[0-9].png", ["img2.png"]),
        ("wells/plate[0-9]/*.png", ["b.png"]),
        ("wells/**/*.png", ["b.png", "img2.png", "img[2].png"]),
    ],
)
def test_brackets_of_names_are_no_pattern_and_hidden_names_no_match(empty_bucket, tmp_path, pattern, names):
    """Compared with the same files on a disk."""
    for name in ("plate[1]/img[2].png", "plate[1]/img2.png", "plate1/b.png", ".cache/c.png"):
        empty_bucket.put(f"wells/{name}", b"x")
        (tmp_path / "wells" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "wells" / name).touch()
    assert sorted(each.name for each in list_files(Url(f"s3://cells/{pattern}"))) == names
    assert sorted(path.name for path in find_images(str(tmp_path / pattern)).paths) == names


def test_predict_from_url_to_url_gives_the_masks_of_local_files(store, best, tmp_path, runtime):
    local = tmp_path / "plates"
    local.mkdir()
    for name in PLATES[:2]:
        (local / Path(name).name).write_bytes(store.read(name))
    expected = predict(PredictConfig(best, str(local), tmp_path / "out"), runtime)
    urls = [Url(f"s3://cells/{each}") for each in ("run/best", "plates", "out")]
    for _ in range(2):  # the second time its own results are replaced
        result = predict(PredictConfig(urls[0], str(urls[1]), urls[2]), runtime)
    assert [image.confluence for image in result.images] == [image.confluence for image in expected.images]
    assert [image.files["mask"] for image in result.images] == [
        "s3://cells/out/a.mask.png",
        "s3://cells/out/b.mask.png",
    ]
    for image in expected.images:
        for path in image.files.values():
            assert store.read(f"out/{path.name}") == path.read_bytes()
    table = store.read("out/summary.csv").decode()
    assert table.replace("s3://cells/plates", str(local)) == (tmp_path / "out" / "summary.csv").read_bytes().decode()
    assert sorted(store.names("out/")) == sorted(f"out/{path.name}" for path in (tmp_path / "out").iterdir())


def test_a_result_that_is_a_folder_is_sent_and_replaced(store, best, tmp_path, runtime):
    zarr = pytest.importorskip("zarr")
    store.put("out/a.labels.ome.zarr/9/9", b"of an earlier result")
    store.put("out/a.labels.ome.zarr/.zattrs", b'{"_creator": {"name": "glioma-dist predict.py"}}')
    formats = ("labels", "ome-zarr")
    image = Url("s3://cells/plates/a.png")
    config = PredictConfig(best, str(image), Url("s3://cells/out"), write=formats, redo=True)
    expected = predict(replace(config, out=tmp_path / "out"), runtime).images[0]
    for _ in range(2):
        (done,) = predict(config, runtime).images
        assert done.files == {name: Url(f"s3://cells/out/{expected.files[name].name}") for name in formats}
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        local = [path for path in files if path.name not in ("summary.csv", "predict.json")]
        for path in local:
            assert store.read(f"out/{path.relative_to(tmp_path / 'out').as_posix()}") == path.read_bytes()
        assert len(store.names("out/")) == len(files)
    store.put("out/a.labels.ome.zarr/.zattrs", b"{}")
    with pytest.raises(InputError, match=r"did not write, the first is a\.labels\.ome\.zarr"):
        predict(config, runtime)
    assert zarr.open_group(expected.files["ome-zarr"], mode="r")["labels/components/0"].shape == (80, 96)


def test_an_image_at_a_url_that_cannot_be_read_is_named_by_its_url(store, best, tmp_path, runtime):
    store.put("plates/b.png", b"no image")
    result = predict(PredictConfig(best, "s3://cells/plates", Url("s3://cells/out")), runtime)
    (failure,) = result.failed
    assert failure.image == "s3://cells/plates/b.png"
    assert "/tmp" not in failure.reason
    assert "s3://cells/plates/b.png" in store.read("out/failed.csv").decode()


def test_somebodys_own_file_at_the_url_is_not_replaced(store, best, runtime):
    store.put("out/a.mask.png", encode_image(draw_sample(0).image))
    with pytest.raises(InputError, match=r"s3://cells/out: holds 1 files .* the first is a.mask.png"):
        predict(PredictConfig(best, "s3://cells/plates", Url("s3://cells/out")), runtime)
    assert store.names("out/") == ["out/a.mask.png"]


def test_a_stack_at_a_url_is_fetched_once_and_a_second_run_fetches_and_writes_no_image(store, best, runtime, tmp_path):
    stack = np.stack([draw_sample(number).image for number in range(3)])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack", metadata=None)
    store.put("plates/stack.tif", (tmp_path / "stack.tif").read_bytes())
    local = predict(PredictConfig(best, str(tmp_path / "stack.tif"), tmp_path / "out"), runtime)
    config = PredictConfig(best, "s3://cells/plates", Url("s3://cells/out"))
    store.requests.clear()
    first = predict(config, runtime)
    names = [image.row()["mask"] for image in first.images]
    assert names == ["a.mask.png", "b.mask.png", *(f"stack-p00{page}.mask.png" for page in (1, 2, 3))]
    for image, expected in zip(first.images[2:], local.images, strict=True):
        assert store.read(f"out/{image.row()['mask']}") == (tmp_path / "out" / expected.row()["mask"]).read_bytes()
    reads = [path for method, path in store.requests if method == "GET" and path.endswith("stack.tif")]
    assert len(reads) == 2  # its list of pages, and all of it
    store.requests.clear()
    assert predict(config, runtime) == first
    assert not [path for method, path in store.requests if method == "GET" and path.endswith(("a.png", "b.png"))]
    assert not [path for method, path in store.requests if method == "PUT" and path.endswith(".mask.png")]
    store.put("plates/a.png", encode_image(draw_sample(9).image))
    predict(config, runtime)
    assert [path for method, path in store.requests if method == "PUT" and path.endswith(".mask.png")] == [
        "/cells/out/a.mask.png"
    ]


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_store_that_goes_away_ends_a_prediction_at_once(store, best, runtime, method, monkeypatch):
    real = Store.__init__
    monkeypatch.setattr(Store, "__init__", lambda self, url, patience=None: real(self, url, patience or QUICK))
    store.faults = lambda made, path, number: "unavailable" if made == method and path.endswith((".png",)) else None
    for name in "cde":
        store.put(f"plates/{name}.png", store.read("plates/a.png"))
    with pytest.raises(UnavailableError):
        predict(PredictConfig(best, "s3://cells/plates", Url("s3://cells/out")), runtime)
    # While an image is segmented, the next one is read, and the one before written.
    read = [path for made, path in store.requests if made == "GET"]
    assert {f"/cells/plates/{name}.png" for name in "de"}.isdisjoint(read)


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_place_that_cannot_be_written_to_is_found_before_the_work(store, best, shards, runtime, name):
    store.faults = lambda method, path, number: "forbidden" if method == "PUT" else None
    predicted = PredictConfig(best, "s3://cells/plates", Url("s3://cells/out"))
    evaluated = EvaluateConfig(best, str(shards / "val"), out=Url("s3://cells/s.json"), workers=0)
    work = partial(predict, predicted, runtime) if name == "predict" else partial(evaluate, evaluated, runtime)
    with pytest.raises(InputError, match=r"cannot be written .*do your credentials allow it"):
        work()
    assert not [path for method, path in store.requests if path.endswith(".safetensors")]


def test_evaluate_from_url_to_url(store, best, shards, tmp_path, runtime):
    expected = evaluate(EvaluateConfig(best, str(shards / "val"), out=tmp_path / "s.json", workers=0), runtime)
    config = EvaluateConfig(Url("s3://cells/run/best"), str(shards / "val"), out=Url("s3://cells/s.json"), workers=0)
    assert evaluate(config, runtime).mean_dice == expected.mean_dice
    told, here = json.loads(store.read("s.json")), json.loads((tmp_path / "s.json").read_text())
    assert told["images"] == here["images"]
    assert told["checkpoint"] == "s3://cells/run/best"


@pytest.mark.slow
def test_export_from_url_to_url(store, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    pytest.importorskip("onnx", reason="needs the extra export")
    config = export_command.OnnxConfig(Url("s3://cells/run/best"), Url("s3://cells/model.onnx"))
    export_command.run_onnx(config)
    assert "s3://cells/model.onnx: logits differ" in capsys.readouterr().out
    assert len(store.read("model.onnx")) > 1000


@pytest.mark.parametrize(
    "fault", ["cut", *(pytest.param(each, marks=pytest.mark.slow) for each in (None, "error", "lost-answer"))]
)
def test_a_large_file_is_uploaded_in_parts(store, tmp_path, fault):
    data = np.random.default_rng(0).bytes(2 * PART_BYTES + 5)
    (tmp_path / "large").write_bytes(data)
    store.faults = lambda method, path, number: fault if method == "PUT" and number == 1 else None
    Store("s3://cells/big", QUICK).put_file("large", tmp_path / "large")
    assert store.read("big/large") == data
    assert sum(method == "PUT" for method, _ in store.requests) >= 3


def test_a_large_file_that_is_given_up_leaves_nothing(store, tmp_path):
    (tmp_path / "large").write_bytes(bytes(PART_BYTES + 1))
    store.faults = lambda method, path, number: "cut" if method == "PUT" and number >= 1 else None
    with pytest.raises(UnavailableError, match="cannot be written after 2 tries"):
        Store("s3://cells/big", QUICK).put_file("large", tmp_path / "large")
    assert store.names("big/") == []
    assert store.client.list_multipart_uploads(Bucket="cells").get("Uploads", []) == []


def test_the_status_of_a_run_is_read_from_its_url(store):
    with pytest.raises(InputError, match="no training has begun there"):
        find_status("s3://cells/run", None)
    told = {"state": "stopped", "code": 75, "reason": "received SIGTERM", "step": 7, "checkpoint_step": 7}
    store.put("run/status.json", json.dumps(told).encode())
    status = find_status("s3://cells/run/", None)
    assert (status.state, status.code, status.next, status.checkpoint_step) == ("stopped", 75, "run again", 7)
    store.put("run/status.json", b"{")
    with pytest.raises(InputError, match="is no JSON"):
        find_status("s3://cells/run", None)


def test_a_report_from_url_to_url_is_that_of_the_local_folder(store, tmp_path):
    """But for the place that it names."""
    sample = draw_sample(0)
    local = tmp_path / "preds"
    local.mkdir()
    (local / "a.mask.png").write_bytes(encode_image(sample.mask * 255))
    (local / "a.overlay.png").write_bytes(encode_image(sample.image))
    (local / "summary.csv").write_text("image,confluence,mask,overlay\na.png,0.2,a.mask.png,a.overlay.png\n")
    for path in local.iterdir():
        store.put(f"preds/{path.name}", path.read_bytes())
    report_prediction(ReportConfig(Path("preds"), tmp_path / "r.html"))
    found = report_prediction(ReportConfig(Url("s3://cells/preds"), Url("s3://cells/made/r.html")))
    page = store.read("made/r.html")
    assert found.num_bytes == len(page)
    assert page.replace(b"s3://cells/preds", b"preds") == (tmp_path / "r.html").read_bytes()
    with pytest.raises(InputError, match=r"summary\.csv: is missing"):
        report_prediction(ReportConfig(Url("s3://cells/plates"), Url("s3://cells/made/r.html")))
