"""Packages of bioimage.io: they pass bioimage.io's own test, and give what prediction gives."""

import contextlib
import io
import locale
import re
import shutil
import socket
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, draw_sample
from test_export import DRAWN, save

from glioma_dist.cli.export import BIOIMAGEIO, BioimageioConfig
from glioma_dist.config import ModelConfig
from glioma_dist.config.networks import network_folder, network_names
from glioma_dist.data.sample import encode_image
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError
from glioma_dist.evaluation.network import Network, cell_probability
from glioma_dist.inference import bioimageio as module
from glioma_dist.inference.bioimageio import ScaledToLogits, export_package
from glioma_dist.inference.bioimageio_description import IMAGE, PROBABILITY, describe, preprocessing
from glioma_dist.inference.package_card import licences_page, package_card, spdx_licence
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.unet import build_model, load_model
from glioma_dist.size import Size

pytestmark = pytest.mark.filterwarnings(  # of files that bioimage.io's libraries close late
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
WHY = "bioimageio.core is not installed (60 MB with what it needs): pip install -e '.[bioimageio]'"


def mask_of(checkpoint: Path, image: np.ndarray) -> np.ndarray:
    """By `predict`'s own functions."""
    model, read = load_model(checkpoint)
    pixels = normalize_intensity(image, read.config.data.intensity_normalization)
    size = Size(image.shape[1], image.shape[0])
    return cell_probability(Network(model, torch.device("cpu")), pixels, None, size).numpy() >= 0.5


@contextlib.contextmanager
def theirs():
    """Within it, warnings of bioimage.io's libraries are no errors, for example PyTorch's of TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def predict_by_core(package: Path, image: np.ndarray) -> np.ndarray:
    """Probabilities (H, W) by bioimage.io's library, with the description's own steps."""
    from bioimageio.core import predict
    from bioimageio.core.digest_spec import create_sample_for_model
    from bioimageio.spec import load_model_description

    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    with theirs():
        described = load_model_description(package)
        sample = create_sample_for_model(described, inputs={IMAGE: planes[None]})
        return np.asarray(predict(model=described, inputs=sample).members[PROBABILITY].data)[0, 0]


@pytest.fixture
def offline(monkeypatch):
    """No connection can be made."""

    def refuse(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("channels", "dtype", "contrast"),
    [(1, np.uint8, "percentile"), (3, np.uint8, "percentile"), (1, np.uint16, "percentile"), (1, np.uint16, "none")],
)
def test_a_package_passes_their_test_and_gives_predicts_mask_at_any_size(tmp_path, channels, dtype, contrast):
    core = pytest.importorskip("bioimageio.core", reason=WHY)
    several = ({"weights": "imagenet", "licence": "non-commercial"}, *DRAWN) if channels == 3 else DRAWN
    checkpoint = save(tmp_path, "mit_tiny", lineage=several, intensity_normalization=contrast)
    tested = draw_sample(1, 130, 100, channels, dtype).image
    made = export_package(checkpoint, tmp_path / "model.zip", tested)
    assert (made.size, made.num_channels, made.licence) == (
        Size(130, 100),
        channels,
        None if channels == 3 else "CC0-1.0",
    )
    assert made.num_other <= (65 if contrast == "percentile" else 0)
    with theirs():
        summary = core.test_description(tmp_path / "model.zip")
    assert summary.status == "passed", summary.details
    for number, (width, height) in enumerate([(128, 96), (117, 89)]):
        image = draw_sample(2 + number, width, height, channels, dtype).image
        found = predict_by_core(tmp_path / "model.zip", image)
        assert found.shape == (height, width)
        other = (found >= 0.5) != mask_of(checkpoint, image)
        # An untrained network on noise: many probabilities lie at 0.5.
        assert other.mean() <= (0.005 if contrast == "percentile" else 0)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("encoder", ["vgg19", "resnet50", "mobilenet_v2"])
@pytest.mark.slow
def test_packages_of_whole_convolutional_networks(tmp_path, encoder):
    pytest.importorskip("bioimageio.core", reason=WHY)
    made = export_package(save(tmp_path, encoder), tmp_path / "model.zip", draw_sample(1, 130, 100).image)
    assert made.largest < 1e-3


def test_the_command_writes_a_package_that_names_no_file_of_this_machine(tmp_path, capsys):
    pytest.importorskip("bioimageio.core", reason=WHY)
    (tmp_path / "field.png").write_bytes(encode_image(draw_sample(1, 130, 100).image))
    config = BioimageioConfig(
        network_folder("t98g-small"),
        str(tmp_path / "field.png"),
        tmp_path / "out" / "m.zip",
        name="Cells (t98g)",
        authors=("A. B",),
    )
    BIOIMAGEIO.run(config)
    said = capsys.readouterr()
    assert re.search(r"m\.zip: passes bioimage\.io's test; takes grey images; \d of 13000 pixels", said.out)
    assert said.out.endswith("licence: MIT\n")
    assert said.err == ""
    with zipfile.ZipFile(config.out) as package:
        content = {name: package.read(name) for name in package.namelist()}
    described = content["rdf.yaml"].decode()
    for text in ("name: Cells (t98g)", "name: A. B", "license: MIT", "format_version: 0.5.", "data: t98g"):
        assert text in described
    assert b"mean Dice on the validation data" in content["README.md"]
    assert b"0.781" in content["README.md"], "the scores of the model card"
    for name, data in content.items():
        inside = [data]
        if name == "weights.pt":
            inside = [
                zipfile.ZipFile(io.BytesIO(data)).read(each) for each in zipfile.ZipFile(io.BytesIO(data)).namelist()
            ]
        for path in (REPOSITORY, tmp_path, Path.home()):
            assert not any(str(path).encode() in each for each in inside), name
    assert [path.name for path in config.out.parent.iterdir()] == ["m.zip"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b?"}, "^--name: give 5 to 128 letters"),
        ({"licence": "mine"}, "^--licence: give an identifier of spdx"),
        ({"authors": ("a/b",)}, "^--authors: give names without a slash"),
    ],
)
def test_what_bioimageio_does_not_take_is_one_line_and_nothing_is_written(tmp_path, changes, message):
    pytest.importorskip("bioimageio.core", reason=WHY)
    with pytest.raises(InputError, match=message) as caught:
        export_package(network_folder("t98g-small"), tmp_path / "m.zip", draw_sample(1, 70, 70).image, **changes)
    assert len(str(caught.value)) <= 500
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_images_smaller_than_a_package_takes_is_refused_whatever_the_image(tmp_path):
    checkpoint = save(tmp_path, "mit_tiny", size=Size(80, 48), transform="resize")
    with pytest.raises(InputError, match=r"best: was trained on images scaled to 80x48, and a package takes .* 64x64"):
        export_package(checkpoint, tmp_path / "model.zip", draw_sample(1, 200, 200).image)


def test_a_package_that_gives_something_else_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("bioimageio.core", reason=WHY)
    monkeypatch.setattr(module, "EPSILON", 50.0)  # of our output; the description keeps its own
    with pytest.raises(InputError, match=r"bioimage\.io's test refuses the package"):
        export_package(network_folder("t98g-small"), tmp_path / "m.zip", draw_sample(1, 70, 70).image)
    assert list(tmp_path.iterdir()) == []


# Without bioimage.io's libraries.


def test_torchscript_and_onnx_are_compared_with_pytorch(monkeypatch):
    network = ScaledToLogits(load_model(network_folder("t98g-small"))[0]).eval()
    example = torch.zeros(1, 1, *module.TRACED_SIZE)
    weights = {"weights.pt": module._to_torchscript(network, example), "weights.onnx": module.to_onnx(network, example)}
    assert module._compare(network, weights, 1) < 1e-3
    other = ScaledToLogits(build_model(ModelConfig("mit_tiny"), 1)[0].eval())
    for name, export in (("weights.pt", module._to_torchscript), ("weights.onnx", module.to_onnx)):
        with pytest.raises(InputError, match=r"other logits than PyTorch.*nothing was written"):
            module._compare(network, weights | {name: export(other, example)}, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_contrast_differs_from_ours_by_one_grey_value_at_most(dtype):
    """bioimage.io's formula, and its interpolated percentiles by NumPy."""
    image = draw_sample(1, 300, 300, dtype=dtype).image
    (step,) = preprocessing("percentile", image.dtype)
    how = step["kwargs"]
    low, high = np.percentile(image, (how["min_percentile"], how["max_percentile"]))
    levels = ((image - low) / (high - low + how["eps"]) * 255).round().clip(0, 255)
    expected = normalize_intensity(image, "percentile").astype(float)
    assert np.abs(levels - expected).max() <= 1


def test_steps_of_16_bits_without_contrast_are_ours_for_every_value():
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    (step,) = preprocessing("none", values.dtype)
    scaled = values.astype(np.float32) * np.float32(step["kwargs"]["gain"]) + np.float32(step["kwargs"]["offset"])
    levels = (torch.from_numpy(scaled) * 255).round().clamp(0, 255).numpy()
    np.testing.assert_array_equal(levels, normalize_intensity(values, "none"))


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["MIT License (LICENSE.txt of the source)"], "MIT"),
        (["CC BY-NC 4.0"], "CC-BY-NC-4.0"),
        (["CC BY 4.0", "cc-by-4.0"], "CC-BY-4.0"),
        (["CC BY-NC 4.0 in the archive, CC BY-NC-ND 4.0 in the paper"], None),
        (["CC BY 4.0", "MIT"], None),
        (["Apache-2.0"], "Apache-2.0"),
        (["Apache License 2.0"], "Apache-2.0"),
        (["NVIDIA Source Code License for SegFormer (non-commercial)"], None),
        (["summit license"], None),
        (["not stated"], None),
        ([], None),
    ],
)
def test_the_licence_is_the_one_of_the_lineage_where_it_is_one(licences, expected):
    lineage = [{"data": str(number), "licence": licence} for number, licence in enumerate(licences)]
    assert spdx_licence(lineage) == expected
    page = licences_page(lineage)
    assert all(licence in page for licence in licences)
    assert ("Not for commercial use" in page) == any("NC" in each or "non-c" in each for each in licences)


@pytest.mark.parametrize("name", network_names())
def test_the_page_of_a_package_has_no_link_into_nowhere(name):
    checkpoint = Checkpoint.read(network_folder(name))
    page = package_card(checkpoint.folder, checkpoint, Size(64, 64), 3, 8)
    assert re.findall(r"\]\((?!https?:)[^)]*\)", page) == []
    assert not page.startswith("---")
    assert "## Validation" in page
    assert "scaled to 64x64 pixels" in page
    assert "three channels (red, green, blue), 8 or 16 bits" in page


@pytest.mark.parametrize(("optimizer", "named"), [("adam", "Adam"), ("sgd", "SGD")])
def test_a_package_names_the_optimizer_of_the_training(optimizer, named, tmp_path, monkeypatch):
    theirs = SimpleNamespace(ModelDescr=SimpleNamespace(implemented_format_version="0.5.4"))
    monkeypatch.setitem(sys.modules, "bioimageio.spec.model.v0_5", theirs)  # of which only the version is used
    model, read = load_model(save(tmp_path, "mit_tiny", optimizer=optimizer))
    described = describe(read, model, 1, preprocessing("percentile", np.dtype(np.uint8)), None, (), None)
    assert described["config"]["bioimageio"]["training"]["optimizer"] == named


def test_the_page_is_read_as_utf8_whatever_the_locale_is(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(network_folder(network_names()[0]), folder)
    (folder / "README.md").write_text("# Zellen, 0,65 µm je Pixel – für Łódź\n", "utf-8")
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")  # stands for ISO 8859-1, which not every machine has
        page = package_card(folder, Checkpoint.read(folder), None, 1, 8)
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert page.startswith("# Zellen, 0,65 µm je Pixel – für Łódź\n")


def test_what_cannot_be_a_package_is_refused(tmp_path):
    checkpoint = save(tmp_path, "mit_tiny", intensity_normalization="clahe")
    with pytest.raises(InputError, match=r"clahe, which bioimage\.io does not know"):
        export_package(checkpoint, tmp_path / "m.zip", draw_sample(1).image)
    with pytest.raises(InputError, match="has 63x80 pixels: give one of at least 64x64"):
        export_package(network_folder("t98g-small"), tmp_path / "m.zip", draw_sample(1, 63, 80).image)
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        export_package(network_folder("t98g-small"), tmp_path, draw_sample(1).image)
