"""The plugin for napari: its manifest, by napari's own library, and what its function gives for arrays."""

import sys
import tomllib
from importlib.resources import files
from types import SimpleNamespace
from typing import get_args

import cv2
import numpy as np
import pytest
import yaml
from helpers import REPOSITORY, draw_sample

from glioma_dist.app import napari as plugin
from glioma_dist.app.napari import segment_array, segment_layer
from glioma_dist.config import PredictConfig
from glioma_dist.data.sample import encode_image
from glioma_dist.errors import InputError
from glioma_dist.inference.predict import predict

NETWORK = "t98g-small"
MANIFEST = "napari.yaml"


def mask_by_predict(image: np.ndarray, folder, threshold: float = 0.5) -> np.ndarray:
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(encode_image(image))
    done = predict(PredictConfig(NETWORK, str(folder / "a.png"), folder / "out", threshold=threshold))
    return cv2.imread(str(done.images[0].files["mask"]), cv2.IMREAD_UNCHANGED)


def layer(data: np.ndarray, **changes) -> SimpleNamespace:
    """What the function uses of an image layer."""
    ndim = data.ndim - changes.get("rgb", False)
    what = {"data": data, "name": "field", "rgb": False, "multiscale": False} | changes
    place = {"scale": np.full(ndim, 0.65), "translate": np.arange(ndim), "rotate": np.eye(ndim)[::-1]}
    affine = SimpleNamespace(affine_matrix=np.diag([*range(2, ndim + 2), 1]))
    return SimpleNamespace(**place, shear=np.full(ndim * (ndim - 1) // 2, 0.1), affine=affine, **what)


def test_napari_accepts_the_manifest():
    npe2 = pytest.importorskip("npe2", reason="npe2 is not installed: pip install -e '.[dev]'")
    manifest = npe2.PluginManifest.from_file(files("glioma_dist.app") / MANIFEST)
    manifest.validate_imports()
    (widget,) = manifest.contributions.widgets
    assert widget.autogenerate
    command = next(each for each in manifest.contributions.commands if each.id == widget.command)
    assert command.python_name == f"{plugin.__name__}:{segment_layer.__name__}"


def test_the_manifest_is_where_the_entry_point_says_and_in_the_wheel():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (name, value), *_ = project["project"]["entry-points"]["napari.manifest"].items()
    module, _, resource = value.partition(":")
    content = yaml.safe_load((files(module) / resource).read_text())
    assert name == content["name"] == project["project"]["name"]
    assert "app/napari.yaml" in project["tool"]["setuptools"]["package-data"]["glioma_dist"]
    assert len((REPOSITORY / "glioma_dist/app/napari.py").read_text().splitlines()) <= 150


def test_annotations_are_what_napari_makes_a_widget_of():
    """napari resolves them; the names of its classes are texts here."""
    hints = segment_layer.__annotations__
    assert hints["layer"] == "napari.layers.Image"
    assert hints["return"] == "napari.types.LayerDataTuple"
    threshold = eval(hints["threshold"], vars(plugin))
    assert get_args(threshold) == (float, {"min": 0.01, "max": 0.99, "step": 0.01})
    assert "napari" not in sys.modules


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (1, np.uint16), (3, np.uint8)])
def test_labels_are_the_components_of_predicts_mask(tmp_path, channels, dtype):
    image = draw_sample(2, 90, 70, channels, dtype).image
    for threshold in (0.5, 0.95):
        mask = mask_by_predict(image, tmp_path / str(threshold), threshold)
        labels = segment_array(image, NETWORK, threshold, is_rgb=channels == 3)
        np.testing.assert_array_equal(labels > 0, mask > 0)
        assert labels.max() == cv2.connectedComponents(mask, connectivity=8)[0] - 1


def test_a_stack_gives_the_labels_of_each_image():
    stack = np.stack([draw_sample(number, 64, 48).image for number in range(4)]).reshape(2, 2, 48, 64)
    labels = segment_array(stack, NETWORK)
    assert (labels.shape, labels.dtype) == (stack.shape, np.int32)
    for place in np.ndindex(2, 2):
        np.testing.assert_array_equal(labels[place], segment_array(stack[place], NETWORK))


@pytest.mark.parametrize("order", "<>")
def test_values_of_16_bits_are_used_as_they_are_in_either_byte_order(order):
    image = draw_sample(2, 64, 48, 1, np.uint16).image // 3 + 500
    used = plugin._images(image.astype(f"{order}u2"), False)
    assert used.dtype == np.uint16
    np.testing.assert_array_equal(used, image[None])


def test_opacity_and_scale_of_floats_change_nothing():
    image = draw_sample(2, 64, 48, 3).image
    with_opacity = np.concatenate([image, np.full((48, 64, 1), 9, np.uint8)], axis=2)
    expected = segment_array(image, NETWORK, is_rgb=True)
    np.testing.assert_array_equal(segment_array(with_opacity, NETWORK, is_rgb=True), expected)
    grey = draw_sample(2, 64, 48).image
    one, two = (segment_array(grey * np.float32(factor) - 3, NETWORK) for factor in (1, 1000))
    np.testing.assert_array_equal(one, two)
    assert ((one > 0) != (segment_array(grey, NETWORK) > 0)).mean() < 0.01


def test_the_layer_of_labels_lies_on_the_image():
    image = draw_sample(2, 64, 48, 3).image
    labels, how, kind = segment_layer(layer(image, rgb=True))
    assert (kind, how["name"]) == ("labels", "field components")
    assert (list(how["scale"]), list(how["translate"])) == ([0.65, 0.65], [0, 1])
    assert (how["rotate"].tolist(), how["shear"].tolist()) == ([[0, 1], [1, 0]], [0.1])
    assert how["affine"].tolist() == [[2, 0, 0], [0, 3, 0], [0, 0, 1]]
    np.testing.assert_array_equal(labels, segment_array(image, is_rgb=True))
    grey = image[..., 0]
    several = layer(grey, multiscale=True)
    several.data = [grey, grey[::2, ::2]]
    full, _, _ = segment_layer(several)
    np.testing.assert_array_equal(full, segment_array(grey))


@pytest.mark.parametrize(
    "value", [np.full((5, 7), 3.0), np.zeros((1, 1), bool), np.full((3, 4), -7, np.int64), np.array([[1e308, -1e308]])]
)
def test_an_even_image_is_an_image(value):
    assert segment_array(value).shape == value.shape


@pytest.mark.parametrize(
    ("data", "how", "message"),
    [
        (np.zeros(5), {}, "is no image"),
        (np.zeros((0, 5)), {}, "is no image"),
        (np.zeros((5, 5, 2)), {"is_rgb": True}, "is no image"),
        (np.full((5, 5), np.nan), {}, "no numbers"),
        (np.zeros((5, 5), complex), {}, "complex128 is no image"),
        (np.zeros((5, 5)), {"threshold": 1.0}, r"threshold 1\.0: give a probability between 0 and 1"),
        (np.zeros((5, 5)), {"checkpoint": "nowhere"}, "nowhere: no checkpoint there"),
    ],
)
def test_what_is_no_image_is_one_line(data, how, message):
    with pytest.raises(InputError, match=message) as caught:
        segment_array(data, **how)
    assert "\n" not in str(caught.value)
