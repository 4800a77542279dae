"""Evaluation with several classes, ignored pixels and single cells, against a computation from plain definitions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import draw_labelled, save_state, tiny_config, write_shards
from scipy import ndimage
from torch import nn

from glioma_dist.config import EvaluateConfig, ModelConfig
from glioma_dist.data.sample import IGNORE
from glioma_dist.errors import InputError
from glioma_dist.evaluation import separation
from glioma_dist.evaluation.image_score import score_image
from glioma_dist.evaluation.instances import match_cells, score_instances
from glioma_dist.evaluation.maps import by_rows, cell_map, channels_first, class_map, maps_of, target_map
from glioma_dist.evaluation.network import Network, cell_probability
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.model.outputs import Outputs
from glioma_dist.model.unet import build_model
from glioma_dist.size import Size
from glioma_dist.training.state import TrainState

CPU = torch.device("cpu")
CLASSES = ("round", "spread")


class Given(nn.Module):
    """A network that gives these logits, scaled to the size of its input by the nearest pixel."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.from_numpy(logits.astype(np.float32))[None]

    def forward(self, images):
        return nn.functional.interpolate(self.logits, images.shape[-2:])


def drawn_logits(sample, outputs: Outputs, seed: int = 0) -> np.ndarray:
    """Nearly right: noise on what the sample says."""
    generator = np.random.default_rng(seed)
    mask = np.where(sample.mask == IGNORE, 0, sample.mask)
    planes = [mask > 0] if outputs.num_mask_channels == 1 else [mask == k for k in range(outputs.num_mask_channels)]
    if outputs.target:
        labels = sample.instances.astype(int)
        planes.append(ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3))
    noise = [ndimage.gaussian_filter(generator.normal(0, 6, mask.shape), 2) for _ in planes]
    return np.stack([4.0 * plane - 2 + each for plane, each in zip(planes, noise, strict=True)])


def dice_of(found: np.ndarray, true: np.ndarray) -> float:
    total = found.sum() + true.sum()
    return 2 * (found & true).sum() / total if total else 1.0


@pytest.mark.parametrize("has_ignore", [False, True])
@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_dice_of_classes_by_the_definition(num_classes, has_ignore):
    outputs = Outputs(num_classes + 1 if num_classes > 1 else 1)
    for number in range(3):
        sample = draw_labelled(number, num_classes=num_classes, has_ignore=has_ignore)
        logits = drawn_logits(sample, outputs)
        score = score_image(Network(Given(logits), CPU, outputs=outputs), sample, None, None)
        known = sample.mask != IGNORE
        assert known.all() != has_ignore
        if num_classes == 1:
            assert score.dice == pytest.approx(dice_of((logits[0] >= 0)[known], sample.mask[known] > 0))
            assert score.dice_by_class == ()
            continue
        shares = np.exp(logits) / np.exp(logits).sum(0)
        found = np.where(1 - shares[0] >= 0.5, shares[1:].argmax(0) + 1, 0)
        each = [dice_of((found == k)[known], (sample.mask == k)[known]) for k in range(1, num_classes + 1)]
        assert score.dice_by_class == pytest.approx(each)
        assert score.dice == pytest.approx(np.mean(each))


def test_a_class_that_is_neither_there_nor_found_agrees():
    sample = draw_labelled(0, num_classes=1)
    logits = np.stack([sample.mask == 0, sample.mask == 1, np.zeros(sample.mask.shape)]) * 20.0 - 10
    logits[2] -= 10
    score = score_image(Network(Given(logits), CPU, outputs=Outputs(3)), sample, None, None)
    assert score.dice_by_class == (1, 1)


@pytest.mark.parametrize("target", [None, "boundary", "distance"])
@pytest.mark.parametrize("input_size", [None, Size(48, 40)])
def test_cells_are_scored_at_the_images_own_size(target, input_size):
    if target:
        pytest.importorskip("skimage", reason="pip install scikit-image")
    outputs = Outputs(1, target)
    sample = draw_labelled(1, has_instances=True)
    network = Network(Given(drawn_logits(sample, outputs)), CPU, outputs=outputs)
    score = score_image(network, sample, input_size, Size(31, 67), True)
    assert score.cells.num_true == len(np.unique(sample.instances)) - 1
    assert score.cells.num_found > 0
    if target is None and input_size is None:
        probability = 1 / (1 + np.exp(-drawn_logits(sample, outputs)[0].astype(np.float32)))
        found, num = ndimage.label(probability >= 0.5, np.ones((3, 3)))
        means = ndimage.mean(probability, found, range(1, num + 1))
        expected = match_cells(found, means, sample.instances)
        np.testing.assert_allclose(score.cells.scores, expected.scores, rtol=1e-6)
        np.testing.assert_array_equal(score.cells.is_match, expected.is_match)


def test_cells_of_ignored_pixels_do_not_count():
    sample = draw_labelled(2, has_ignore=True, has_instances=True)
    logits = np.where(sample.mask == 0, -9.0, 9.0)[None]  # also all that is ignored
    score = score_image(Network(Given(logits), CPU), sample, None, None, True)
    assert score.dice == 1
    _, num = ndimage.label((sample.mask > 0) & (sample.mask != IGNORE), np.ones((3, 3)))
    assert score.cells.num_found <= num


def test_an_image_that_is_too_large_for_single_cells_has_a_remedy_of_this_command(monkeypatch):
    monkeypatch.setattr(separation, "MOST_SEPARATED_PIXELS", 100)
    sample = draw_labelled(3, has_instances=True)
    network = Network(Given(drawn_logits(sample, Outputs())), CPU)
    with pytest.raises(InputError, match=f"sample {sample.key}: .*cut it into fields, or omit --instances") as refused:
        score_image(network, sample, None, None, True)
    assert "--write" not in str(refused.value)
    assert score_image(network, sample, None, None).dice > 0


def test_maps_of_numpy_and_torch_are_the_same():
    outputs = Outputs(3, "distance")
    logits = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = maps_of(outputs, logits)[0]
    torch.testing.assert_close(maps[:3].sum(0), torch.ones(6, 5, dtype=torch.float64))
    torch.testing.assert_close(maps[3], logits[0, 3].sigmoid())
    rows = by_rows(maps)
    assert rows.shape == (6, 4, 5)
    again = channels_first(rows)
    np.testing.assert_array_equal(again, maps.numpy())
    for function in (cell_map, target_map):
        np.testing.assert_array_equal(function(outputs, again), function(outputs, maps).numpy())
    np.testing.assert_array_equal(class_map(outputs, again, 0.6), class_map(outputs, maps, 0.6).numpy())


def test_the_probability_of_a_cell_is_what_background_leaves():
    sample = draw_labelled(0, num_classes=2)
    logits = drawn_logits(sample, Outputs(3))
    found = cell_probability(Network(Given(logits), CPU, outputs=Outputs(3)), sample.image, None, Size(96, 80))
    shares = np.exp(logits) / np.exp(logits).sum(0)
    np.testing.assert_allclose(found.numpy(), shares[1:].sum(0), atol=1e-5)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    samples = [draw_labelled(number, num_classes=2, has_ignore=True, has_instances=True) for number in range(4)]
    write_shards(folder / "classes", samples, classes=CLASSES)
    samples = [draw_labelled(number, has_instances=True) for number in range(4)]
    write_shards(folder / "one", samples)
    write_shards(folder / "plain", [draw_labelled(number) for number in range(2)])
    return folder


def save(folder, shards, **model):
    """A checkpoint of drawn weights."""
    folder.parent.mkdir(parents=True)
    config = tiny_config(shards, folder.parent)
    config = replace(config, model=replace(config.model, **model))
    network, _ = build_model(config.model, 0)
    save_state(folder, config, TrainState(step=5), network, None, {"lineage": []})
    return folder


@pytest.mark.parametrize("target", ["boundary", "distance"])
def test_evaluate_writes_scores_of_classes_and_cells(target, labelled, tmp_path, runtime):
    pytest.importorskip("skimage", reason="pip install scikit-image")
    folder = save(tmp_path / "run" / "best", labelled, classes=CLASSES, targets=("mask", target))
    config = EvaluateConfig(folder, str(labelled / "classes"), out=tmp_path / "scores.json", workers=0, instances=True)
    result = evaluate(config, runtime)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == result.to_dict()
    assert list(scores["dice_by_class"]) == list(CLASSES)
    assert scores["dice_mean"] == pytest.approx(np.mean(list(scores["dice_by_class"].values())))
    assert scores["instances"]["num_true"] == sum(image["num_true"] for image in scores["images"])
    assert result.instances == score_instances([image.cells for image in result.images])


def test_without_the_flag_the_file_has_the_fields_of_before(labelled, tmp_path, runtime):
    folder = save(tmp_path / "run" / "best", labelled)
    scores = evaluate(EvaluateConfig(folder, str(labelled / "one"), workers=0), runtime).to_dict()
    assert list(scores) == [
        *("dice_mean", "num_images", "input_size", "metric_size", "checkpoint", "step", "data", "images")
    ]
    assert all(list(image) == ["key", "dice"] for image in scores["images"])


@pytest.mark.parametrize(
    ("data", "model", "instances", "reason"),
    [
        ("plain", {}, True, "--instances: the shards of --data have no number for each cell"),
        ("classes", {}, False, "its masks have round spread, the network tells one class"),
        ("one", {"classes": CLASSES}, False, "its masks have one class, the network tells round spread"),
        ("classes", {"classes": CLASSES[::-1]}, False, "its masks have round spread, the network tells spread round"),
    ],
)
def test_shards_of_other_labels_are_refused(data, model, instances, reason, labelled, tmp_path, runtime):
    folder = save(tmp_path / "run" / "best", labelled, **model)
    config = EvaluateConfig(folder, str(labelled / data), workers=0, instances=instances)
    with pytest.raises(InputError, match=reason):
        evaluate(config, runtime)


def test_a_model_config_tells_its_outputs():
    assert Outputs.of(ModelConfig()) == Outputs()
    assert Outputs.of(ModelConfig(classes=CLASSES, targets=("mask", "boundary"))) == Outputs(3, "boundary")
