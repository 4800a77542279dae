"""Masks for images of every kind: sizes, names, the covered share, damaged files, overlays."""

import csv
import errno
import os
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
import torch
from helpers import command, draw_sample, save_state, tiny_config
from PIL import Image
from torch.nn import functional

from glioma_dist.config import PredictConfig
from glioma_dist.config.paths import Url
from glioma_dist.data.sample import encode_image
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import DiskFullError, InputError, PartialError, one_sentence
from glioma_dist.inference.images import find_images, unique_names
from glioma_dist.inference.predict import predict
from glioma_dist.inference.results import Failure, describe_failures
from glioma_dist.inference.writers.overlay import overlay
from glioma_dist.model.unet import build_model, normalise
from glioma_dist.size import Size
from glioma_dist.training.state import TrainState


def save_model(folder, shards, transform: str) -> SimpleNamespace:
    """A checkpoint of weights as they are drawn, with a bias that halves the pixels."""
    config = tiny_config(shards, folder, transform=transform)
    model, _ = build_model(config.model, 0)
    model.eval()
    with torch.no_grad():
        logits = model(normalise(torch.from_numpy(draw_sample(0).image)[None, None]))
        model.decoder.head.bias -= logits.median()
    save_state(folder / "best", config, TrainState(step=1), model, None, {"lineage": []})
    return SimpleNamespace(folder=folder / "best", model=model)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A checkpoint of a model that is shown images at their own size."""
    return save_model(tmp_path_factory.mktemp("whole"), shards, "random-crop")


@pytest.fixture(scope="module")
def resized(shards, tmp_path_factory):
    """A checkpoint of a model that is shown images at 64x64."""
    return save_model(tmp_path_factory.mktemp("resized"), shards, "resize")


def expected_mask(model: torch.nn.Module, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    image = normalize_intensity(image, "percentile")
    height, width = image.shape[:2]
    if size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    channels = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)[None]
    with torch.no_grad():
        shares = model(normalise(channels)).sigmoid()
    if size:
        shares = functional.interpolate(shares, (height, width), mode="bilinear")
    return (shares[0, 0] >= 0.5).numpy()


def read_summary(out) -> list[dict]:
    with open(out / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_failed(out) -> list[dict]:
    with open(out / "failed.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_results(out, rows, model, images: dict[str, np.ndarray], size=None) -> None:
    """images: file name -> pixels as the network should be given them."""
    table = read_summary(out)
    assert [row["image"].rsplit("/", 1)[1] for row in table] == sorted(images)
    assert len({row["mask"] for row in table} | {row["overlay"] for row in table}) == 2 * len(images)
    for row, returned in zip(table, rows, strict=True):
        pixels = images[row["image"].rsplit("/", 1)[1]]
        mask = cv2.imread(str(out / row["mask"]), cv2.IMREAD_UNCHANGED)
        assert (mask.dtype, mask.shape) == (np.uint8, pixels.shape[:2])
        np.testing.assert_array_equal(mask, expected_mask(model, pixels, size) * 255)
        assert float(row["confluence"]) == pytest.approx((mask == 255).mean(), abs=1e-6)
        assert 0 < float(row["confluence"]) < 1
        assert (int(row["width"]), int(row["height"])) == pixels.shape[1::-1]
        assert {name: "" if value is None else str(value) for name, value in returned.row().items()} == row
        picture = cv2.imread(str(out / row["overlay"]), cv2.IMREAD_UNCHANGED)
        assert (picture.dtype, picture.shape) == (np.uint8, (*pixels.shape[:2], 3))
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["predict.json", "summary.csv", *(row[name] for row in table for name in ("mask", "overlay"))]
    )


def test_every_kind_of_file_gets_a_mask_of_its_own_size(whole, tmp_path, runtime):
    folder, images = tmp_path / "in", {}
    folder.mkdir()
    for number, dtype in enumerate((np.uint8, np.uint16)):
        bits = 8 * (number + 1)
        for channels in (1, 3, 4):
            width, height = 70 + 7 * number + channels, 50 + 5 * channels
            pixels = draw_sample(number, width, height, channels, dtype).image
            shown = pixels[..., :3] if channels == 4 else pixels
            kind = {1: "grey", 3: "rgb", 4: "rgba"}[channels]
            photometric = "minisblack" if channels == 1 else "rgb"
            tifffile.imwrite(folder / f"{kind}{bits}-t.tif", pixels, photometric=photometric)
            images[f"{kind}{bits}-t.tif"] = shown
            order = {1: slice(None), 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
            cv2.imwrite(str(folder / f"{kind}{bits}-p.PNG"), pixels if channels == 1 else pixels[..., order])
            images[f"{kind}{bits}-p.PNG"] = shown
    (folder / "notes.txt").write_text("no image")
    (folder / "more.tif").mkdir()
    result = predict(PredictConfig(whole.folder, str(folder), tmp_path / "out"), runtime)
    check_results(tmp_path / "out", result.images, whole.model, images)


def test_a_model_that_learned_resized_images_is_shown_them_resized(resized, tmp_path, runtime):
    pixels = draw_sample(1, 150, 111).image
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    result = predict(PredictConfig(resized.folder, str(tmp_path), tmp_path / "out"), runtime)
    check_results(tmp_path / "out", result.images, resized.model, {"a.png": pixels}, (64, 64))
    result = predict(PredictConfig(resized.folder, str(tmp_path), tmp_path / "out2", Size(100, 90)), runtime)
    check_results(tmp_path / "out2", result.images, resized.model, {"a.png": pixels}, (100, 90))


def test_the_threshold_is_a_probability(whole, tmp_path, runtime):
    cv2.imwrite(str(tmp_path / "a.png"), draw_sample(1).image)
    shares = [
        predict(PredictConfig(whole.folder, str(tmp_path / "a.png"), tmp_path / "out", threshold=threshold), runtime)
        .images[0]
        .confluence
        for threshold in (1e-9, 0.4, 0.5, 0.6, 1 - 1e-9)
    ]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1, 0)
    assert shares[0] > shares[2] > shares[-1]


def test_files_of_one_stem_do_not_overwrite_each_other(whole, tmp_path, runtime):
    folder, images = tmp_path / "in", {}
    folder.mkdir()
    for number, name in enumerate(("a.tif", "a.png", "a.tif.png", "b.png")):
        images[name] = draw_sample(number).image
        if name.endswith("png"):
            cv2.imwrite(str(folder / name), images[name])
        else:
            tifffile.imwrite(folder / name, images[name])
    result = predict(PredictConfig(whole.folder, str(folder), tmp_path / "out"), runtime)
    check_results(tmp_path / "out", result.images, whole.model, images)
    assert (tmp_path / "out" / "b.mask.png").is_file()


def output_names(paths: list[Path]) -> list[str]:
    """Of files with one picture each."""
    return unique_names([(path, number, [path.stem], [""]) for number, path in enumerate(paths)])


def test_names_are_unique_and_as_short_as_can_be(tmp_path):
    paths = [tmp_path / name for name in ("x/a.tif", "y/a.tif", "y/b.png", "z/1/c.png", "w/1/c.png", "z/c.tif")]
    names = output_names(paths)
    assert len(set(names)) == len(names)
    assert names == ["x_a.tif", "y_a.tif", "b", "00003_c.png", "00004_c.png", "c.tif"]


def test_names_are_unique_even_where_a_file_bears_the_name_that_another_would_get(tmp_path):
    paths = [tmp_path / name for name in ("u/1/c.png", "v/00000_c.png", "w/1/c.png")]
    assert len(set(output_names(paths))) == 3


def test_folders_files_and_patterns_find_images(tmp_path):
    for name in ("b.tif", "a.PNG", "c.tiff", "d.jpg", "sub/e.png", "sub/deep/f.TIF"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in find_images(str(tmp_path / pattern)).paths]

    assert found("") == ["a.PNG", "b.tif", "c.tiff"]
    assert found("b.tif") == ["b.tif"]
    assert found("*.tif*") == ["b.tif", "c.tiff"]
    assert found("**/*") == ["a.PNG", "b.tif", "c.tiff", "sub/deep/f.TIF", "sub/e.png"]
    assert found("*.jpg") == found("d.jpg") == ["d.jpg"]
    for pattern in ("nowhere", "*.bmp", "sub/deep/*.png"):
        with pytest.raises(InputError, match="--images"):
            find_images(str(tmp_path / pattern))


def test_a_damaged_file_does_not_stop_the_others(whole, tmp_path, runtime):
    folder, images = tmp_path / "in", {}
    folder.mkdir()
    for number in range(3):
        images[f"{number}.png"] = draw_sample(number).image
        cv2.imwrite(str(folder / f"{number}.png"), images[f"{number}.png"])
    data = (folder / "1.png").read_bytes()
    (folder / "0-short.png").write_bytes(data[: len(data) // 2])
    (folder / "1-empty.tif").touch()
    (folder / "2-text.png").write_text("no image at all")
    result = predict(PredictConfig(whole.folder, str(folder), tmp_path / "out"), runtime)
    with pytest.raises(PartialError) as error:
        result.raise_for_failures()
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 1
    for part in ("3 of 6 images failed (3 not read)", "failed.csv", "0-short.png", "1-empty.tif"):
        assert part in str(error.value)
    names = [str(folder / name) for name in ("0-short.png", "1-empty.tif", "2-text.png")]
    assert [row["image"] for row in read_failed(tmp_path / "out")] == names
    assert [failure.image for failure in result.failed] == names
    (tmp_path / "out" / "failed.csv").unlink()
    check_results(tmp_path / "out", result.images, whole.model, images)


def test_a_folder_of_damaged_files_only_is_one_line_too(whole, tmp_path, runtime):
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"1 of 1 images failed \(1 not read\), none is done.*a\.png"):
        predict(PredictConfig(whole.folder, str(tmp_path), tmp_path / "out"), runtime)
    assert read_summary(tmp_path / "out") == []


@pytest.mark.parametrize("channels", [1, 3])
def test_an_overlay_leaves_the_ground_and_outlines_cells(channels):
    image = draw_sample(1, channels=channels).image
    before, mask = image.copy(), np.zeros((80, 96), np.uint8)
    mask[20:40, 30:60] = 1
    picture = overlay(image, mask)
    np.testing.assert_array_equal(image, before)
    assert (picture.dtype, picture.shape) == (np.uint8, (80, 96, 3))
    colours = np.broadcast_to(np.atleast_3d(image), (80, 96, 3))
    np.testing.assert_array_equal(picture[mask == 0], colours[mask == 0])
    edge = mask.copy()
    edge[21:39, 31:59] = 0
    assert (picture[edge == 1] == (255, 200, 0)).all()
    inside = (mask == 1) & (edge == 0)
    expected = 0.85 * colours[inside] + 0.15 * np.array((255, 200, 0))
    assert np.abs(picture[inside] - expected).max() <= 1


def test_what_predict_wrote_is_not_masked_again(tmp_path):
    for name in ("a.png", "a.mask.png", "a.overlay.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4), np.uint8))
    for pattern in (tmp_path, tmp_path / "*.png"):
        found = find_images(str(pattern))
        assert [path.name for path in found.paths] == ["a.png"]
        assert found.describe() == "2 results of glioma-dist predict not read"


def put_image(folder: Path, name: str | bytes, number: int = 0) -> np.ndarray:
    """Write a drawn PNG or TIFF under any name that the system allows; returns its pixels."""
    pixels = draw_sample(number).image
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    if path.endswith(b".png"):
        data = encode_image(pixels)
    else:
        tifffile.imwrite(folder / "drawn", pixels)
        data = (folder / "drawn").read_bytes()
        (folder / "drawn").unlink()
    with open(path, "wb") as file:
        file.write(data)
    return pixels


def files_of(folder: Path) -> dict[bytes, bytes]:
    """The name of each file, as bytes, and what it holds."""
    return {os.fsencode(path.name): path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_name_that_is_not_utf_8_gets_its_mask_like_its_neighbours(whole, tmp_path):
    """As a command: OpenCV ends the process with a segmentation fault on such a name."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate((b"a.tif", b"k\xf6ln.tif", b"z.tif")):
        put_image(tmp_path / "in", name, number)
    ended = command("predict.py", "--checkpoint", whole.folder, "--images", tmp_path / "in", "--out", tmp_path / "out")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "k\\xf6ln.tif" in ended.stdout
    names = {b"a", b"k\xf6ln", b"z"}
    assert files_of(tmp_path / "out").keys() == {b"predict.json", b"summary.csv"} | {
        name + ending for name in names for ending in (b".mask.png", b".overlay.png")
    }
    table = (tmp_path / "out" / "summary.csv").read_bytes().decode("utf-8")
    assert [Path(row["image"]).name for row in csv.DictReader(table.splitlines())] == [
        "a.tif",
        "k\\xf6ln.tif",
        "z.tif",
    ]
    mask = cv2.imdecode(np.frombuffer(files_of(tmp_path / "out")[b"k\xf6ln.mask.png"], np.uint8), -1)
    np.testing.assert_array_equal(mask, expected_mask(whole.model, draw_sample(1).image) * 255)


def test_a_name_too_long_for_its_results_is_named_and_the_others_are_done(whole, tmp_path, runtime):
    (tmp_path / "in").mkdir()
    long = "x" * 246 + ".tif"
    for name in ("a.tif", long, "z.tif"):
        put_image(tmp_path / "in", name)
    result = predict(PredictConfig(whole.folder, str(tmp_path / "in"), tmp_path / "out"), runtime)
    with pytest.raises(PartialError, match=r"1 of 3 images failed \(1 not written\), the others are done") as error:
        result.raise_for_failures()
    assert "xxx.tif" in str(error.value)
    assert "the name is too long" in str(error.value)
    assert len(str(error.value)) <= 500
    endings = ("mask.png", "overlay.png")
    expected = [
        "failed.csv",
        "predict.json",
        "summary.csv",
        *(f"{name}.{ending}" for name in "az" for ending in endings),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)
    (failure,) = read_failed(tmp_path / "out")
    assert (Path(failure["image"]).name, failure["step"]) == (long, "written")
    (tmp_path / "in" / long).unlink()
    predict(PredictConfig(whole.folder, str(tmp_path / "in"), tmp_path / "out"), runtime)
    assert not (tmp_path / "out" / "failed.csv").exists()


def test_odd_names_all_get_results_of_their_own(whole, tmp_path, runtime):
    (tmp_path / "in").mkdir()
    names = [
        "-a.png",
        "--out.png",
        "a\nb.png",
        'a"b,c.png',
        "a:b.png",
        "😀.png",
        "=1+1.png",
        " .png",
        "[a].png",
        "%s.png",
    ]
    names += ["B.png", "b.png", *(unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))]
    names += [os.fsdecode(b"\xf6.png"), os.fsdecode(b"\xff.png"), "a\u2028b.png"]
    for name in names:
        put_image(tmp_path / "in", name)
    result = predict(PredictConfig(whole.folder, str(tmp_path / "in"), tmp_path / "out"), runtime)
    assert len(result.images) == len(names)
    found = [os.fsdecode(name) for name in files_of(tmp_path / "out")]
    assert len(found) == 2 * len(names) + 2
    # What a file system that ignores case, or composes accents, makes of them is different, too.
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == len(found)
    table = (tmp_path / "out" / "summary.csv").read_bytes().decode("utf-8")
    assert len(table.splitlines()) == len(names) + 1
    assert len({row["image"] for row in csv.DictReader(table.splitlines())}) == len(names)


def test_results_beside_the_images_are_neither_read_nor_replace_a_users_file(whole, tmp_path, runtime, capsys):
    put_image(tmp_path, "a.png")
    put_image(tmp_path, "b.png", 1)
    before = files_of(tmp_path)
    config = PredictConfig(whole.folder, str(tmp_path), tmp_path)
    assert len(predict(config, runtime).images) == 2
    once = files_of(tmp_path)
    assert len(predict(config, runtime).images) == 2
    assert "6 results of glioma-dist predict not read" in capsys.readouterr().out
    assert files_of(tmp_path) == once
    assert {name: once[name] for name in before} == before
    for name in ("a.mask.png", "b.overlay.png", "summary.csv"):
        (tmp_path / name).write_bytes(before[b"a.png"])
        with pytest.raises(InputError, match=rf"did not write, the first is {name}; give another folder"):
            predict(config, runtime)
        assert (tmp_path / name).read_bytes() == before[b"a.png"]
        (tmp_path / name).write_bytes(once[name.encode()])


@pytest.mark.parametrize("number", [0, 1, 3, 4, 9])
def test_a_full_disk_stops_at_once_and_leaves_whole_files(whole, tmp_path, runtime, monkeypatch, number):
    """number: of the syncs that succeed: overlay, mask and folder for each image, then the table."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        put_image(tmp_path / "in", name)
    synced, sync = [], os.fsync

    def fill(descriptor: int) -> None:
        if len(synced) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(DiskFullError, match="the disk is full; free space") as error:
        predict(PredictConfig(whole.folder, str(tmp_path / "in"), tmp_path / "out"), runtime)
    assert error.value.exit_code == 2
    files = files_of(tmp_path / "out")
    assert len(files) == 2 * (number // 3)  # of an image all are there or none
    assert not list((tmp_path / "out").glob(".*"))
    for data in files.values():
        assert cv2.imdecode(np.frombuffer(data, np.uint8), -1) is not None


def test_a_folder_that_vanishes_stops_at_once(whole, tmp_path, runtime, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        put_image(tmp_path / "in", name)
    out = tmp_path / "out"

    def vanish(*_, **__) -> None:
        if out.exists():  # another thread may be writing to it
            out.rename(tmp_path / "elsewhere")

    monkeypatch.setattr("builtins.print", vanish)
    with pytest.raises(InputError, match="its folder is gone"):
        predict(PredictConfig(whole.folder, str(tmp_path / "in"), out), runtime)
    assert not out.exists()


def test_whatever_is_not_read_is_counted_and_named(tmp_path):
    put_image(tmp_path, "a.tif")
    for name in ("b.jpg", "c.JPG", "d.vsi", "notes", ".DS_Store", "._a.tif", "a.mask.png"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    put_image(tmp_path / "deeper", "e.tif")
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "lost.tif").symlink_to(tmp_path / "nowhere")
    found = find_images(str(tmp_path))
    assert [path.name for path in found.paths] == ["a.tif"]
    assert sorted(found.describe().split("; ")) == sorted(
        [
            "3 files not read (2 .jpg, 1 .vsi)",
            "1 file without a suffix not read",
            "2 hidden files not read",
            "1 result of glioma-dist predict not read",
            "1 folder inside not searched",
            "1 pipe, socket or device not read",
            "1 link that leads nowhere",
        ]
    )
    assert find_images(str(tmp_path / "*.[jt]*")).describe() == (
        "2 files not read (1 .jpg, 1 .JPG)".replace("1 .jpg, 1 .JPG", ".jpg").replace("2 files", "1 file")
        + "; 1 link that leads nowhere; 1 pipe, socket or device not read"
    )
    assert find_images(str(tmp_path / "**/*.tif")).describe().count("folder") == 0
    with pytest.raises(
        InputError,
        match=r"no \.tif, \.tiff, \.png, \.jpg, \.jpeg, \.nd2, \.czi, .*\.zarr there \(1 file not read \(\.vsi\)\)",
    ):
        find_images(str(tmp_path / "d.vsi"))


@pytest.mark.parametrize("name", ["./.a.tif", "deeper//.b.tif", "deeper/../.a.tif", "./exp.v2", "exp.v2/"])
def test_what_is_named_is_read_however_its_path_is_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("deeper", "exp.v2"):
        (tmp_path / folder).mkdir()
    (tmp_path / "exp.v2" / ".zgroup").write_text('{"zarr_format": 2}')
    for file in (".a.tif", "deeper/.b.tif"):
        (tmp_path / file).touch()
    (found,) = find_images(name).paths
    assert found.samefile(name)


def test_a_jpeg_beside_tiffs_is_named_on_the_screen(whole, tmp_path):
    put_image(tmp_path, "a.tif")
    (tmp_path / "b.jpg").touch()
    ended = command("predict.py", "--checkpoint", whole.folder, "--images", tmp_path, "--out", tmp_path / "out")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert f"{tmp_path}: 1 file not read (.jpg)" in ended.stdout.splitlines()


def test_jpegs_are_segmented_where_there_is_nothing_else(whole, tmp_path):
    (tmp_path / "plate").mkdir()
    for name in ("a.jpg", "b.JPEG"):
        Image.fromarray(draw_sample(3).image).save(tmp_path / "plate" / name, "jpeg")
    ended = command("predict.py", "--checkpoint", whole.folder, "--images", tmp_path / "plate", "--out", tmp_path / "o")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "o").glob("*.mask.png")) == ["a.mask.png", "b.mask.png"]


def test_signs_of_a_pattern_in_the_name_of_a_file_are_no_pattern(tmp_path):
    put_image(tmp_path, "[a]*.png")
    assert [path.name for path in find_images(str(tmp_path / "[a]*.png")).paths] == ["[a]*.png"]
    (tmp_path / "[b]").mkdir()
    put_image(tmp_path / "[b]", "c.png")
    assert [path.name for path in find_images(str(tmp_path / "[b]")).paths] == ["c.png"]


def test_the_line_of_a_failure_shortens_the_exception_and_not_the_sentence_around_it():
    url, advice = "https://example.invalid/x.png", "is the URL right, does the bucket exist, and may you read it?"
    error = InputError(f"{url} cannot be read (FileNotFoundError: {'z' * 90}); {advice}")
    failure = Failure.of(Url(url), "read", error)
    assert failure.reason == f"cannot be read (FileNotFoundError: {'z' * 90}); {advice}"
    line = describe_failures([failure], 1, Path("out/failed.csv"))
    assert re.search(rf"x\.png: cannot be read \(FileNotFoundE.* … z+\); {re.escape(advice)}$", line)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("a cannot be read (E: xyz); try later", 60, "a cannot be read (E: xyz); try later"),
        (f"a cannot be read ({'x' * 90}); try (again) later", 70, r"a cannot be read \(x+ … x+\); try \(again\) later"),
        (f"a cannot be read ({'x' * 90})", 50, r"a cannot be read \(x+ … x+\)"),
        (f"a cannot be read ({'x' * 90}); try later", 38, r"a cannot be read \(…\); try later"),
        ("x" * 90, 38, "x+ … x+"),
    ],
)
def test_of_a_sentence_that_is_too_long_what_stands_in_brackets_is_cut(text, limit, expected):
    line = one_sentence(text, limit)
    assert line == text if len(text) <= limit else re.fullmatch(expected, line)
    assert len(line) <= limit


def test_the_line_of_many_failures_is_short_and_counts_all():
    failures = [Failure(f"/data/{'n' * 40}{number}.tif", "read", "cut short " * 9) for number in range(1000)]
    line = describe_failures(failures, 2000, Path("out/failed.csv"))
    assert len(line) <= 500
    assert line.startswith("1000 of 2000 images failed (1000 not read), the others are done; out/failed.csv lists them")
    named = line.count(".tif: cut short")
    assert line.endswith(f"and {1000 - named} more")
    line = describe_failures([Failure("n" * 900, "read", "x"), *failures], 2000, Path("out/failed.csv"))
    assert len(line) <= 500
    assert "nnn" in line
