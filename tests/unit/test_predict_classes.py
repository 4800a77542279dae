"""predict, its report, growth, the app's and napari's functions with several classes and with a second output; pictures
in strips, in tiles and scaled."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers import draw_sample, save_state, tiny_config
from PIL import Image

from glioma_dist.app.napari import segment_array
from glioma_dist.app.pictures import Segmenter
from glioma_dist.config import PredictConfig, ReportConfig
from glioma_dist.config.growth import GrowthConfig
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.sample import encode_image
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError
from glioma_dist.evaluation import separation
from glioma_dist.evaluation.maps import by_rows, channels_first, class_map
from glioma_dist.evaluation.network import load_network, pixel_maps
from glioma_dist.growth_curves.run import growth
from glioma_dist.inference.large import tiles
from glioma_dist.inference.large.picture import ArrayPicture
from glioma_dist.inference.large.scaled import segment_scaled
from glioma_dist.inference.large.strips import compute_in_strips
from glioma_dist.inference.large.tiles import compute_in_tiles
from glioma_dist.inference.predict import predict
from glioma_dist.model.unet import build_model
from glioma_dist.registry import writers
from glioma_dist.report.prediction_page import report_prediction
from glioma_dist.size import Size
from glioma_dist.training.state import TrainState

CLASSES = ("type A", "soma")
KINDS = [(CLASSES, ("mask",)), (CLASSES, ("mask", "boundary")), ((), ("mask", "distance"))]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{len(kind[0]) or 1} classes, {kind[1][-1]}")
def checkpoint(request, tmp_path_factory):
    """Drawn weights, whose logits are spread so that all classes are found."""
    classes, targets = request.param
    if len(targets) > 1:
        pytest.importorskip("skimage", reason="pip install scikit-image")
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(folder, folder)
    config = replace(config, model=replace(config.model, classes=classes, targets=targets))
    model, _ = build_model(config.model, 0)
    with torch.no_grad():
        model.decoder.head.weight.mul_(20)
    save_state(folder / "best", config, TrainState(step=1), model, None, {"lineage": []})
    return folder / "best"


def plate(folder: Path, num: int = 2) -> Path:
    folder.mkdir()
    for number in range(num):
        name = f"T98G_Phase_A1_1_{number:02d}d00h00m_1.png"
        (folder / name).write_bytes(encode_image(draw_sample(number, width=117, height=89).image))
    return folder


def read_summary(out: Path) -> list[dict]:
    with (out / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def network_of(checkpoint, runtime):
    return load_network(checkpoint, 1, runtime)[0]


def test_all_formats_of_a_prediction(checkpoint, tmp_path, runtime):
    pytest.importorskip("zarr")
    pytest.importorskip("roifile")
    images = plate(tmp_path / "plate")
    config = PredictConfig(checkpoint, str(images), tmp_path / "out", write=tuple(writers.names()))
    done = predict(config, runtime)
    assert not done.failed
    network = network_of(checkpoint, runtime)
    for image, row in zip(done.images, read_summary(tmp_path / "out"), strict=True):
        assert set(image.files) == set(writers.names())
        sample = draw_sample(int(image.image.stem.split("_")[4][:2]), width=117, height=89)
        maps = pixel_maps(network, normalize_intensity(sample.image, "percentile"), None, Size(117, 89))[0].numpy()
        expected = class_map(network.outputs, maps, 0.5)
        found = np.asarray(Image.open(image.files["mask"]))
        is_classes = network.outputs.num_mask_channels > 1
        assert ((found if is_classes else found // 255) != expected).mean() < 1e-3
        assert (tifffile.imread(image.files["labels"]) > 0).mean() == pytest.approx((found > 0).mean())
        assert float(row["confluence"]) == pytest.approx((found > 0).mean(), abs=1e-6)
        for number, name in enumerate(CLASSES if is_classes else (), 1):
            assert float(row[f"confluence of {name}"]) == pytest.approx((found == number).mean(), abs=1e-6)
            assert image.class_confluence[name] == float(row[f"confluence of {name}"])
    again = predict(config, runtime)  # from the record
    assert again.images == done.images


def test_report_and_growth_read_such_a_table(checkpoint, tmp_path, runtime):
    images = plate(tmp_path / "plate", 3)
    predict(PredictConfig(checkpoint, str(images), tmp_path / "out"), runtime)
    page = report_prediction(ReportConfig(tmp_path / "out", tmp_path / "page.html"))
    assert page is None or Path(tmp_path / "page.html").exists()
    growth(GrowthConfig(tmp_path / "out" / "summary.csv", tmp_path / "growth"))
    assert (tmp_path / "growth").is_dir()


def test_strips_and_tiles_give_all_maps(checkpoint, tmp_path, runtime, monkeypatch):
    network = network_of(checkpoint, runtime)
    image = draw_sample(3, width=200, height=288).image
    whole = by_rows(pixel_maps(network, image, None, Size(200, 288))[0])
    found = np.full(whole.shape, np.nan, np.float32)

    def write(first: int, rows: np.ndarray) -> None:
        found[first : first + len(rows)] = rows

    compute_in_strips(network, ArrayPicture(image), 3, lambda: False, tmp_path, write)
    np.testing.assert_allclose(found, whole, atol=1e-4)
    found[:] = np.nan
    overlap = 64
    assert compute_in_tiles(network, ArrayPicture(image), tiles.least_side(overlap), write, overlap) > 1
    assert np.isfinite(found).all()
    num_classes = network.outputs.num_mask_channels
    if num_classes > 1:
        np.testing.assert_allclose(found[:, :num_classes].sum(1), 1, atol=1e-5)


def test_maps_scaled_by_rows_are_those_of_the_whole(checkpoint, tmp_path, runtime):
    network = network_of(checkpoint, runtime)
    image = draw_sample(3, width=100, height=90).image
    whole = by_rows(pixel_maps(network, image, Size(64, 64), Size(100, 90))[0])
    found = segment_scaled(ArrayPicture(image), network, Size(64, 64), 2**40, tmp_path)
    np.testing.assert_allclose(np.asarray(found), whole, atol=1e-5)


def test_an_image_too_large_to_separate_has_a_mask_and_no_cells(checkpoint, tmp_path, runtime, monkeypatch):
    network = network_of(checkpoint, runtime)
    monkeypatch.setattr(separation, "MOST_SEPARATED_PIXELS", 117 * 89 - 1)
    config = PredictConfig(checkpoint, str(plate(tmp_path / "plate", 1)), tmp_path / "out")
    (done,) = predict(config, runtime).images
    assert (done.cells, set(done.files)) == (None, {"mask", "overlay"})
    config = replace(config, write=("labels",))
    if network.outputs.target is None:
        assert len(predict(config, runtime).images) == 1
    else:
        with pytest.raises(InputError, match="touching cells are separated in images of up to"):
            predict(config, runtime)


def test_the_app_and_napari_show_cells_of_all_classes(checkpoint, tmp_path, runtime):
    network, read = load_network(checkpoint, 1, runtime)
    image = draw_sample(0, width=117, height=89).image
    (tmp_path / "a.png").write_bytes(encode_image(image))
    with ImageReader() as reader:
        shown = Segmenter(network, read.config.data, None, reader).segment(tmp_path / "a.png", "a.png")
    config = PredictConfig(checkpoint, str(tmp_path / "a.png"), tmp_path / "out", write=("mask", "labels"))
    (done,) = predict(config, runtime).images
    mask = np.asarray(Image.open(done.files["mask"])) > 0
    assert ((shown.levels >= 50) != mask).mean() < 1e-3
    labels = segment_array(image, checkpoint)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, tifffile.imread(done.files["labels"]))


def test_rows_of_maps_can_be_stored_and_read():
    maps = torch.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(channels_first(by_rows(maps)), maps.numpy())
    np.testing.assert_array_equal(channels_first(by_rows(maps[:1])), maps[:1].numpy())
