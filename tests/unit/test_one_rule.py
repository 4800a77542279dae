"""Which pixels are cells, and of which class: training, validation, evaluate, predict and an exported network agree."""

import json

import numpy as np
import pytest
import torch
from helpers import draw_labelled, rows, tiny_config, write_shards
from PIL import Image

from glioma_dist.config import EvaluateConfig, PredictConfig
from glioma_dist.data.sample import encode_image
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.inference.export import as_input, export
from glioma_dist.inference.predict import predict
from glioma_dist.model.outputs import Outputs
from glioma_dist.training.loop import train

CLASSES = ("round", "spread", "dead")
WIDTH, HEIGHT, NUM_IMAGES = 64, 64, 3


def as_class(logits: np.ndarray) -> np.ndarray:
    """The rule in numpy and fp64: logits (C, H, W) to numbers of classes (H, W)."""
    logits = logits.astype(np.float64)
    if len(logits) == 1:
        return (1 / (1 + np.exp(-logits[0])) >= 0.5).astype(np.uint8)
    p = np.exp(logits) / np.exp(logits).sum(0)
    return np.where(1 - p[0] >= 0.5, p[1:].argmax(0) + 1, 0).astype(np.uint8)


def dice_of(found: np.ndarray, true: np.ndarray) -> float:
    total = found.sum() + true.sum()
    return 2 * (found & true).sum() / total if total else 1.0


def dice_by_class(found: np.ndarray, true: np.ndarray, num: int) -> list[float]:
    return [dice_of(found == number, true == number) for number in range(1, num + 1)]


@pytest.mark.parametrize("classes", [(), CLASSES], ids=["one class", "three classes"])
def test_validation_evaluate_predict_and_the_exported_network_agree(classes, tmp_path, runtime):
    """The network's weights are drawn, so that background is often the most probable class and yet improbable."""
    num = max(1, len(classes))
    samples = [draw_labelled(number, WIDTH, HEIGHT, num_classes=num) for number in range(NUM_IMAGES)]
    shards, images = tmp_path / "shards", tmp_path / "images"
    images.mkdir()
    for name in ("train", "val"):
        write_shards(shards / name, samples, classes=classes)
    for sample in samples:
        (images / f"{sample.key}.png").write_bytes(encode_image(sample.image))
    loss = {"loss": "ce"} if classes else {}
    how = {"max_steps": 1, "batch_size": 3, "lr": 1e-9, "transform": "resize", "classes": classes, **loss}
    config = tiny_config(shards, tmp_path / "run", **how)
    train(config, runtime)
    (validation,) = (row for row in rows(config.out) if row.get("split") == "val")
    checkpoint = config.out / "last"

    evaluate(EvaluateConfig(checkpoint, str(shards / "val"), out=tmp_path / "scores.json", workers=0), runtime)
    scores = json.loads((tmp_path / "scores.json").read_text())
    predict(PredictConfig(checkpoint, str(images), tmp_path / "out", write=("mask",)), runtime)
    masks = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").rglob("*.png"))]
    masks = masks if classes else [mask // 255 for mask in masks]
    assert len(masks) == NUM_IMAGES

    by_class = [dice_by_class(mask, sample.mask, num) for mask, sample in zip(masks, samples, strict=True)]
    assert scores["dice_mean"] == pytest.approx(np.mean(by_class), abs=2e-4)
    assert validation["dice"] == pytest.approx(np.mean(by_class), abs=2e-4)
    if classes:
        expected = dict(zip(classes, np.mean(by_class, axis=0), strict=True))
        assert scores["dice_by_class"] == pytest.approx(expected, abs=2e-4)
        assert validation["dice_by_class"] == pytest.approx(expected, abs=2e-4)

    pytest.importorskip("onnx", reason="needs the extra export")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    export(checkpoint, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for mask, sample in zip(masks, samples, strict=True):
        (logits,) = session.run(["logits"], {"image": as_input(sample.image)})
        assert (as_class(logits[0]) != mask).mean() < 1e-3
        if classes:  # the most probable of all four is another rule
            assert (logits[0].argmax(0) != mask).mean() > 0.01


@pytest.mark.parametrize("num_channels", [1, 2, 3, 5])
@pytest.mark.parametrize("target", [None, "distance"])
def test_the_rule_on_logits_is_that_on_probabilities(num_channels, target):
    outputs = Outputs(num_channels, target)
    logits = 2 * torch.randn(3, outputs.num_outputs, 31, 17, generator=torch.Generator().manual_seed(0))
    logits[0, :, 0] = 0
    found = outputs.predicted(logits).numpy()
    expected = np.stack([as_class(each[:num_channels].numpy()) for each in logits])
    np.testing.assert_array_equal(found, expected)
    assert (found[0, 0] == 1).all()
