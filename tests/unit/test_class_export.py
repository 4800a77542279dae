"""Exports of networks with several classes and with a second output."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from helpers import TINY_CHANNELS, draw_sample, save_state, tiny_config

from glioma_dist.config import ModelConfig
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.evaluation.maps import class_map
from glioma_dist.evaluation.network import Network, pixel_maps
from glioma_dist.inference.bioimageio import export_package
from glioma_dist.inference.bioimageio_description import as_channels
from glioma_dist.inference.export import as_input, channels_of, export
from glioma_dist.model.hub import PretrainedUNet, model_card
from glioma_dist.model.outputs import Outputs
from glioma_dist.model.unet import build_model, load_model
from glioma_dist.size import Size
from glioma_dist.training.state import TrainState

CLASSES = ("type A", "soma / large")
KINDS = [(CLASSES, ("mask",)), (CLASSES, ("mask", "boundary")), ((), ("mask", "distance"))]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{len(kind[0]) or 1} classes, {kind[1][-1]}")
def checkpoint(request, tmp_path):
    classes, targets = request.param
    config = tiny_config(tmp_path, tmp_path, encoder="mit_tiny", decoder_channels=TINY_CHANNELS)
    config = replace(config, model=replace(config.model, classes=classes, targets=targets))
    model, _ = build_model(config.model, 0)
    save_state(
        tmp_path / "best", config, TrainState(step=1), model, None, {"lineage": [{"data": "x", "licence": "CC0"}]}
    )
    return tmp_path / "best"


def predicted(checkpoint, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (C, H, W) and the mask."""
    model, read = load_model(checkpoint)
    outputs = Outputs.of(read.config.model)
    size = Size(image.shape[1], image.shape[0])
    network = Network(model, torch.device("cpu"), outputs=outputs)
    maps = pixel_maps(network, normalize_intensity(image, "percentile"), None, size)[0].numpy()
    return maps, class_map(outputs, maps, 0.5)


def test_onnx_has_all_channels_and_names_them(checkpoint, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    image = draw_sample(1, width=117, height=89).image
    parity = export(checkpoint, tmp_path / "model.onnx", images=[image])
    assert parity.num_other == 0
    assert parity.num_pixels == 117 * 89
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": as_input(image)})
    names = channels_of(load_model(checkpoint)[1].config.model)
    assert logits.shape == (1, len(names), 89, 117)
    metadata = {each.key: each.value for each in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(metadata["channels"]) == names
    maps, _ = predicted(checkpoint, image)
    num = len(names) if names[0] == "cell" else len(names) - (names[-1] == "boundary")
    shares = 1 / (1 + np.exp(-logits[0]))
    if names[0] == "background":
        shares[:num] = np.exp(logits[0, :num]) / np.exp(logits[0, :num]).sum(0)
    np.testing.assert_allclose(shares, maps, atol=1e-3)


def test_onnx_of_16_bits_has_the_classes_of_predict(checkpoint, tmp_path):
    pytest.importorskip("onnx", reason="needs the extra export")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    image = draw_sample(2, width=70, height=45, dtype=np.uint16).image
    assert export(checkpoint, tmp_path / "model.onnx", bits=16, images=[image]).num_other == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": as_input(image)})
    outputs = Outputs.of(load_model(checkpoint)[1].config.model)
    found = outputs.predicted(torch.from_numpy(logits))[0].numpy()
    np.testing.assert_array_equal(found, predicted(checkpoint, image)[1])


def test_a_package_of_bioimageio_gives_maps(checkpoint, tmp_path):
    """It is written only if it passes their test. Its output has a channel for each class and the second target."""
    pytest.importorskip("bioimageio.core", reason="needs the extra bioimageio")
    made = export_package(checkpoint, tmp_path / "model.zip", draw_sample(1, 130, 100).image)
    assert made.largest < 1e-3
    assert made.num_other <= 65
    with zipfile.ZipFile(tmp_path / "model.zip") as package:
        (output,) = yaml.safe_load(package.read("rdf.yaml"))["outputs"]
    (channels,) = [axis["channel_names"] for axis in output["axes"] if axis["type"] == "channel"]
    assert len(channels) == len(channels_of(load_model(checkpoint)[1].config.model))


def test_the_card_names_classes_and_the_second_output(checkpoint, tmp_path):
    network = PretrainedUNet.from_pretrained(checkpoint)
    card = model_card(network.settings, network.metadata)
    for name in (*network.settings.model.classes, *network.settings.model.targets[1:]):
        assert name in card
    network.save_pretrained(tmp_path / "saved")
    again = PretrainedUNet.from_pretrained(tmp_path / "saved")
    assert again.settings.model == network.settings.model
    images = torch.zeros(1, 3, 64, 32)
    assert torch.equal(again(images), network(images))


def test_channels_in_their_order():
    model = ModelConfig()
    assert channels_of(model) == ["cell"]
    both = replace(model, classes=CLASSES, targets=("mask", "boundary"))
    assert channels_of(both) == ["background", *CLASSES, "boundary"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["background", "A+", "A-", "+", "-"], ["background", "a", "a_2", "class", "class_2"]),
        (
            ["background", "background!", "boundary", "boundary"],
            ["background", "background_2", "boundary", "boundary_2"],
        ),
        (["a", "a_2", "A", "a"], ["a", "a_2", "a_3", "a_4"]),
        (["background", "type A", "soma / large"], ["background", "type_a", "soma_large"]),
    ],
)
def test_no_two_channels_of_a_package_have_one_name(names, expected):
    assert as_channels(names) == expected
