"""Masks for images of every kind: sizes, names, the covered share, damaged files, overlays."""

import csv
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
import torch
from helpers import draw_sample, tiny_config
from torch.nn import functional

from glioma_dist.config import PredictConfig, Size
from glioma_dist.data.augment import raise_contrast
from glioma_dist.errors import InputError
from glioma_dist.inference.predict import find_images, output_names, overlay, predict
from glioma_dist.model.unet import build_model, normalise
from glioma_dist.training.state import Position, save_state


def save_model(folder, shards, fit: str) -> SimpleNamespace:
    """A checkpoint of weights as they are drawn, with a bias that halves the pixels."""
    config = tiny_config(shards, folder, fit=fit)
    model, _ = build_model(config.model, 0)
    model.eval()
    with torch.no_grad():
        logits = model(normalise(torch.from_numpy(draw_sample(0).image)[None, None]))
        model.decoder.head.bias -= logits.median()
    save_state(folder / "best", config, Position(step=1), model, None, {"lineage": []})
    return SimpleNamespace(folder=folder / "best", model=model)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A checkpoint of a model that is shown images at their own size."""
    return save_model(tmp_path_factory.mktemp("whole"), shards, "crop")


@pytest.fixture(scope="module")
def resized(shards, tmp_path_factory):
    """A checkpoint of a model that is shown images at 64x64."""
    return save_model(tmp_path_factory.mktemp("resized"), shards, "resize")


def expected_mask(model: torch.nn.Module, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    image = raise_contrast(image, "percentile")
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
        assert float(row["covered_share"]) == pytest.approx((mask == 255).mean(), abs=1e-6)
        assert 0 < float(row["covered_share"]) < 1
        assert (int(row["width"]), int(row["height"])) == pixels.shape[1::-1]
        assert {name: str(value) for name, value in returned.items()} == row
        picture = cv2.imread(str(out / row["overlay"]), cv2.IMREAD_UNCHANGED)
        assert (picture.dtype, picture.shape) == (np.uint8, (*pixels.shape[:2], 3))
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["summary.csv", *(row[name] for row in table for name in ("mask", "overlay"))]
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
    rows = predict(PredictConfig(whole.folder, str(folder), tmp_path / "out"), runtime)
    check_results(tmp_path / "out", rows, whole.model, images)


def test_a_model_that_learned_resized_images_is_shown_them_resized(resized, tmp_path, runtime):
    pixels = draw_sample(1, 150, 111).image
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    rows = predict(PredictConfig(resized.folder, str(tmp_path), tmp_path / "out"), runtime)
    check_results(tmp_path / "out", rows, resized.model, {"a.png": pixels}, (64, 64))
    rows = predict(PredictConfig(resized.folder, str(tmp_path), tmp_path / "out2", Size(100, 90)), runtime)
    check_results(tmp_path / "out2", rows, resized.model, {"a.png": pixels}, (100, 90))


def test_the_threshold_is_a_probability(whole, tmp_path, runtime):
    cv2.imwrite(str(tmp_path / "a.png"), draw_sample(1).image)
    shares = [
        predict(PredictConfig(whole.folder, str(tmp_path / "a.png"), tmp_path / "out", threshold=threshold), runtime)[
            0
        ]["covered_share"]
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
    rows = predict(PredictConfig(whole.folder, str(folder), tmp_path / "out"), runtime)
    check_results(tmp_path / "out", rows, whole.model, images)
    assert (tmp_path / "out" / "b.mask.png").is_file()


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
        return [str(path.relative_to(tmp_path)) for path in find_images(str(tmp_path / pattern))]

    assert found("") == ["a.PNG", "b.tif", "c.tiff"]
    assert found("b.tif") == ["b.tif"]
    assert found("*.tif*") == ["b.tif", "c.tiff"]
    assert found("**/*") == ["a.PNG", "b.tif", "c.tiff", "sub/deep/f.TIF", "sub/e.png"]
    for pattern in ("d.jpg", "nowhere", "*.bmp", "sub/deep/*.png"):
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
    with pytest.raises(InputError) as error:
        predict(PredictConfig(whole.folder, str(folder), tmp_path / "out"), runtime)
    assert "\n" not in str(error.value)
    for part in ("3 of 6 images", "0-short.png", "1-empty.tif", "2-text.png"):
        assert part in str(error.value)
    table = read_summary(tmp_path / "out")
    check_results(tmp_path / "out", table, whole.model, images)


def test_a_folder_of_damaged_files_only_is_one_line_too(whole, tmp_path, runtime):
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"1 of 1 images left out.*a\.png"):
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
    assert [path.name for path in find_images(str(tmp_path))] == ["a.png"]
    assert [path.name for path in find_images(str(tmp_path / "*.png"))] == ["a.png"]
