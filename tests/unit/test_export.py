"""ONNX: the graph gives what prediction gives, for any size, and is written only if it does."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_helpers import narrow
from helpers import TINY_CHANNELS, draw_sample, save_state, tiny_config

from glioma_dist.cli.export import ONNX, OnnxConfig
from glioma_dist.config import ModelConfig
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError
from glioma_dist.evaluation.network import Network, cell_probability
from glioma_dist.inference import export as module
from glioma_dist.inference.export import ImageToLogits, as_input, export
from glioma_dist.model.unet import build_model, load_model
from glioma_dist.size import Size
from glioma_dist.training.state import TrainState

pytest.importorskip("onnx", reason="ONNX is not installed: pip install -e '.[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[export]'")


@pytest.fixture(autouse=True)
def without_onnxscript(monkeypatch):
    """Which the extra `export` does not install: PyTorch's exporter of scripts does not need it."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # which Python takes for missing


DRAWN = ({"data": "drawn", "licence": "CC0"},)


def save(folder, encoder: str, channels=TINY_CHANNELS, lineage=DRAWN, **changes):
    """A checkpoint with running statistics that are not at rest."""
    config = tiny_config(folder, folder, encoder=encoder, decoder_channels=channels, **changes)
    model = build_model(ModelConfig(encoder=encoder, decoder_channels=channels), 0)[0]
    generator = torch.Generator().manual_seed(1)
    for module_ in model.modules():
        if isinstance(module_, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module_.running_mean, 0, 0.1, generator=generator)
    save_state(folder / "best", config, TrainState(step=1), model, None, {"lineage": list(lineage)})
    return folder / "best"


def run_graph(file, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": as_input(image)})[0]


@pytest.mark.parametrize("name", ["mit_tiny", "vgg19", "resnet50", "mobilenet_v2"])
def test_the_graph_gives_what_prediction_gives_at_sizes_it_was_not_checked_with(tmp_path, monkeypatch, name):
    if name != "mit_tiny":
        narrow(monkeypatch, name)
    check_export(tmp_path, name, TINY_CHANNELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mit_b0", "mit_b3", "vgg19", "resnet50", "mobilenet_v2"])
def test_whole_networks(tmp_path, name):
    check_export(tmp_path, name, (256, 128, 64, 32, 16))


def check_export(folder, name: str, channels) -> None:
    checkpoint = save(folder, name, channels)
    grey = draw_sample(1, width=117, height=89).image
    colour = draw_sample(2, width=64, height=33, channels=3).image
    parity = export(checkpoint, folder / "model.onnx", images=[grey, colour])
    assert parity.largest < 1e-3
    assert (parity.num_other, parity.num_pixels) == (0, 117 * 89 + 64 * 33)
    model = load_model(checkpoint)[0]
    for image in (grey, colour, draw_sample(3, width=200, height=40).image):
        height, width = image.shape[:2]
        logits = run_graph(folder / "model.onnx", image)
        assert logits.shape == (1, 1, height, width)
        network = Network(model, torch.device("cpu"))
        shares = cell_probability(network, normalize_intensity(image, "percentile"), None, Size(width, height))
        np.testing.assert_allclose(1 / (1 + np.exp(-logits[0, 0])), shares.numpy(), atol=1e-4)
        assert ((logits[0, 0] > 0) == (shares.numpy() >= 0.5)).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("contrast", ["percentile", "none"])
@pytest.mark.parametrize("values", [(0, 256), (7, 9), (3, 4)])
def test_contrast_in_the_graph_is_numpys_number_for_number(bits, contrast, values):
    generator = np.random.default_rng(0)
    kind = np.uint8 if bits == 8 else np.uint16
    image = (generator.integers(*values, (40, 30, 3)) * (1 if bits == 8 else 201)).astype(kind)
    seen = []
    model = build_model(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS), 0)[0].eval()
    network = ImageToLogits(model, contrast, 2**bits)
    original = module.normalise
    module.normalise = lambda pixels: seen.append(pixels) or original(pixels)
    try:
        network(torch.from_numpy(as_input(image)))
    finally:
        module.normalise = original
    np.testing.assert_array_equal(seen[0][0].permute(1, 2, 0).numpy(), normalize_intensity(image, contrast))


def test_images_of_16_bits(tmp_path):
    checkpoint = save(tmp_path, "mit_tiny")
    image = draw_sample(4, dtype=np.uint16).image
    assert export(checkpoint, tmp_path / "model.onnx", 16, [image]).largest < 1e-3
    with pytest.raises(InputError, match="has 16 bits, the graph is made for 8: give others, or --bits 16"):
        export(checkpoint, tmp_path / "model.onnx", 8, [image])


def test_a_graph_that_is_not_equal_is_not_written(tmp_path, monkeypatch):
    checkpoint = save(tmp_path, "mit_tiny")
    monkeypatch.setattr(module, "LOW_PERCENT", 5.0)  # of the graph; the reference has its own
    with pytest.raises(InputError, match=r"other logits than PyTorch.*nothing was written"):
        export(checkpoint, tmp_path / "model.onnx")
    assert list(tmp_path.glob("*.onnx*")) == []


def test_a_place_that_is_no_file_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, Path("."), tmp_path / "file" / "model.onnx"):
        with pytest.raises(InputError, match=r"--out .*(name a file in it|file is no folder)"):
            export(tmp_path / "no checkpoint", out)


def test_clahe_is_refused(tmp_path):
    checkpoint = save(tmp_path, "mit_tiny", intensity_normalization="clahe")
    with pytest.raises(InputError, match="clahe, which no ONNX operator computes"):
        export(checkpoint, tmp_path / "model.onnx")


def test_the_command_and_what_the_file_says_of_itself(tmp_path, capsys):
    checkpoint = save(tmp_path, "mit_tiny")
    ONNX.run(OnnxConfig(checkpoint, tmp_path / "out" / "model.onnx"))
    assert "differ from PyTorch's by at most" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["encoder"] == "mit_tiny"
    assert json.loads(metadata["lineage"]) == [{"data": "drawn", "licence": "CC0"}]
    assert session.get_inputs()[0].shape == [1, 3, "height", "width"]


@pytest.mark.parametrize(
    ("licence", "warned"), [("CC BY-NC 4.0", True), ("CC0", False), ("a non-commercial licence", True)]
)
def test_who_exports_a_network_is_told_of_non_commercial_data(tmp_path, capsys, licence, warned):
    checkpoint = save(tmp_path, "mit_tiny", lineage=[{"data": "cells", "licence": licence}])
    ONNX.run(OnnxConfig(checkpoint, tmp_path / "model.onnx"))
    told = f"not for commercial use, because of what the network was trained from (cells: {licence})"
    assert (told in capsys.readouterr().out) == warned
