"""Dice and the article's DS, against numpy and loops."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faulty_server import files_of, serve
from helpers import draw_sample, draw_shards, save_state, tiny_config

from glioma_dist.config import EvaluateConfig
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.reader import ShardWriter
from glioma_dist.errors import InputError
from glioma_dist.evaluation.dice import dice
from glioma_dist.evaluation.image_score import score_image
from glioma_dist.evaluation.network import Network
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.model.unet import build_model
from glioma_dist.size import Size
from glioma_dist.training.state import TrainState

CPU = torch.device("cpu")


def dice_slowly(one: np.ndarray, other: np.ndarray) -> float:
    if not one.any() and not other.any():
        return 1.0
    both = sum(bool(a) and bool(b) for a, b in zip(one.flat, other.flat, strict=True))
    return 2 * both / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_dice_of_a_batch_is_that_of_each_pair(density):
    generator = np.random.default_rng(0)
    ours, theirs = (generator.random((4, 3, 9, 11)) < limit for limit in (density, 0.4))
    scores = dice(torch.from_numpy(ours), torch.from_numpy(theirs.astype(np.uint8)))
    assert (scores.dtype, scores.shape) == (torch.float64, (4, 3))
    for place in np.ndindex(4, 3):
        assert scores[place].item() == dice_slowly(ours[place], theirs[place])


def test_dice_of_empty_full_and_single_pixels():
    empty, full = torch.zeros(5, 6), torch.ones(5, 6)
    pixel, other = empty.clone(), empty.clone()
    pixel[1, 2], other[4, 5] = 1, 1
    assert dice(empty, empty).item() == 1
    assert dice(full, full).item() == 1
    for one, two in ((empty, full), (full, empty), (pixel, other), (empty, pixel)):
        assert dice(one, two).item() == 0
    assert dice(pixel, pixel).item() == 1
    assert dice(pixel, full).item() == 2 / 31


def test_dice_counts_more_pixels_than_fp32_can():
    """2^24 + 1 is not a number of fp32."""
    mask = torch.ones(4099, 4099, dtype=torch.uint8)
    other = mask.clone()
    other[0, 0] = 0
    pixels = 4099**2
    assert dice(mask, other).item() == 2 * (pixels - 1) / (2 * pixels - 1)


class BrightIsCell(torch.nn.Module):
    """A stub: the logit is how much a pixel's first channel lies above the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(images.shape))
        return (images[:, :1] * 0.229 + 0.485 - 0.5) * 10


def bilinear_slowly(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Centres of pixels on half numbers, edges repeated, in fp64."""

    def weights(old: int, new: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        for place in range(new):
            source = min(max((place + 0.5) * old / new - 0.5, 0), old - 1)
            first = min(int(source), old - 1)
            matrix[place, first] += 1 - (source - first)
            matrix[place, min(first + 1, old - 1)] += source - first
        return matrix

    return weights(values.shape[0], height) @ values.astype(np.float64) @ weights(values.shape[1], width).T


def ds_slowly(sample: Sample, shrink: int, metric: tuple[int, int]) -> float:
    """DS(x, y, R1, R2) of the stub, R1 the image's size over `shrink`."""
    low, high = np.percentile(sample.image, [0.5, 99.5], method="inverted_cdf").astype(float)
    image = ((sample.image - low) * 255 / (high - low)).round().clip(0, 255)
    height, width = image.shape
    blocks = image.reshape(height // shrink, shrink, width // shrink, shrink).mean(axis=(1, 3))
    share = 1 / (1 + np.exp(-(np.floor(blocks + 0.5) / 255 - 0.5) * 10))
    output = bilinear_slowly(share, *metric) if share.shape != metric[::-1] else share
    reference = bilinear_slowly(sample.mask, *metric) > 1e-9 if (width, height) != metric else sample.mask
    return dice_slowly(output >= 0.5, reference)


@pytest.mark.parametrize(
    ("shrink", "metric"), [(1, (96, 80)), (2, (96, 80)), (1, (48, 40)), (2, (48, 40)), (2, (144, 100)), (4, (31, 67))]
)
def test_ds_is_dice_after_both_scalings(shrink, metric):
    for number in range(3):
        sample, model = draw_sample(number), BrightIsCell()
        score = score_image(
            Network(model, CPU), sample, Size(96 // shrink, 80 // shrink), Size(*metric), contrast="percentile"
        ).dice
        assert model.sizes == [(1, 3, 80 // shrink, 96 // shrink)]
        # Where a pixel's share is a half up to rounding it may fall to either side: two pixels are allowed for.
        assert abs(score - ds_slowly(sample, shrink, metric)) < 4 / (metric[0] * metric[1] * 0.3)
        assert 0.5 < score < 1


def test_without_sizes_the_image_goes_in_and_is_compared_as_it_is():
    sample, model = draw_sample(7, width=53, height=41), BrightIsCell()
    score = score_image(Network(model, CPU), sample, None, None, contrast="percentile").dice
    assert model.sizes == [(1, 3, 41, 53)]
    assert score == pytest.approx(ds_slowly(sample, 1, (53, 41)), abs=4 / (53 * 41 * 0.3))


@pytest.fixture(scope="module")
def checkpoint(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "best"
    config = tiny_config(shards, folder.parent)
    model, _ = build_model(config.model, 0)
    save_state(folder, config, TrainState(step=5), model, None, {"lineage": []})
    return SimpleNamespace(folder=folder, model=model.eval())


def test_evaluation_scores_every_image_and_writes_it_down(checkpoint, shards, tmp_path, runtime):
    out = tmp_path / "a" / "scores.json"
    config = EvaluateConfig(checkpoint.folder, str(shards / "train"), Size(64, 32), None, out, workers=0)
    result = evaluate(config, runtime)
    scores = result.to_dict()
    assert json.loads(config.out.read_text()) == scores
    assert (result.mean_dice, result.path) == (scores["dice_mean"], config.out)
    assert [image["key"] for image in scores["images"]] == [f"cell-{number:03d}" for number in range(10)]
    assert scores["dice_mean"] == pytest.approx(np.mean([image["dice"] for image in scores["images"]]), rel=1e-12)
    for image in scores["images"]:
        sample = draw_sample(int(image["key"][-3:]))
        expected = score_image(Network(checkpoint.model, CPU), sample, Size(64, 32), None, contrast="percentile").dice
        assert image["dice"] == pytest.approx(expected, rel=1e-12)
    assert (scores["num_images"], scores["step"]) == (10, 5)
    assert (scores["input_size"], scores["metric_size"]) == ("64x32", "own")


def test_evaluation_of_a_folder_without_images_is_one_line(checkpoint, tmp_path, runtime):
    with ShardWriter(tmp_path / "none", "drawn", "none", "CC0"):
        pass
    with pytest.raises(InputError, match="none"):
        evaluate(EvaluateConfig(checkpoint.folder, str(tmp_path / "none"), workers=0), runtime)


def test_evaluation_without_a_checkpoint_is_one_line(shards, tmp_path, runtime):
    with pytest.raises(InputError, match=r"nowhere: no checkpoint"):
        evaluate(EvaluateConfig(tmp_path / "nowhere", str(shards / "train"), workers=0), runtime)


def test_evaluation_tells_which_data_it_was(checkpoint, tmp_path, runtime):
    draw_shards(tmp_path / "held-out", range(2))
    scores = evaluate(EvaluateConfig(checkpoint.folder, str(tmp_path / "held-out"), workers=0), runtime)
    assert scores.data == {"dataset": "drawn", "split": "held-out", "licence": "CC0"}


def test_evaluation_takes_a_url(checkpoint, shards, runtime):
    with serve(files_of(shards)) as server:
        remote = evaluate(EvaluateConfig(checkpoint.folder, f"{server.url}/train", workers=0), runtime)
    assert remote == evaluate(EvaluateConfig(checkpoint.folder, str(shards / "train"), workers=0), runtime)
