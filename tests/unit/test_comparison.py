"""The article's metrics and the spread beside them, against loops, sums and integrals in numpy."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from glioma_dist.data.sample import Sample
from glioma_dist.evaluation.comparison import (
    bootstrap_interval,
    dice_score_av,
    differences,
    holm,
    paired_test,
    repetition_means,
    standard_deviation,
)
from glioma_dist.evaluation.image_score import score_image
from glioma_dist.evaluation.network import Network
from glioma_dist.size import Size

CPU = torch.device("cpu")


def draw_scores(seed: int, num_repetitions: int = 10, num_images: int = 30, num_tested: int = 10) -> list[dict]:
    generator = np.random.default_rng(seed)
    own = generator.normal(0.85, 0.05, num_images)
    return [
        {f"image{n}": own[n] + generator.normal(0, 0.01) for n in generator.permutation(num_images)[:num_tested]}
        for _ in range(num_repetitions)
    ]


def shifted(scores: list[dict], seed: int, by: float, spread: float) -> list[dict]:
    generator = np.random.default_rng(seed)
    return [{key: value + by + generator.normal(0, spread) for key, value in images.items()} for images in scores]


# DS, written again slowly.


class Given(nn.Module):
    """A network that answers with the same logits whatever it is shown."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.from_numpy(logits)[None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-2:] == self.logits.shape[-2:]
        return self.logits


def scaled_slowly(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear, pixel by pixel, centres on half numbers, edges repeated."""
    old_height, old_width = values.shape
    result = np.zeros((height, width))
    for y, x in itertools.product(range(height), range(width)):
        row = min(max((y + 0.5) * old_height / height - 0.5, 0), old_height - 1)
        column = min(max((x + 0.5) * old_width / width - 0.5, 0), old_width - 1)
        for near_y, near_x in itertools.product(
            (math.floor(row), math.ceil(row)), (math.floor(column), math.ceil(column))
        ):
            weight_y = 1 - abs(row - near_y) if math.floor(row) != math.ceil(row) else 0.5
            weight_x = 1 - abs(column - near_x) if math.floor(column) != math.ceil(column) else 0.5
            result[y, x] += weight_y * weight_x * values[near_y, near_x]
    return result


def ds_slowly(logits: np.ndarray, mask: np.ndarray, metric: Size) -> float:
    """Dice(sigma(f, R2) >= 0.5, sigma(y, R2) > 0), by counting."""
    output = scaled_slowly(1 / (1 + np.exp(-logits.astype(np.float64))), metric.width, metric.height)
    reference = scaled_slowly(mask, metric.width, metric.height)
    both = ours = theirs = 0
    for value, truth in zip(output.flat, reference.flat, strict=True):
        a, b = value >= 0.5, truth > 1e-12
        both, ours, theirs = both + (a and b), ours + a, theirs + b
    return 1.0 if ours + theirs == 0 else 2 * both / (ours + theirs)


def masks(height: int, width: int) -> dict[str, np.ndarray]:
    one_pixel, corner = np.zeros((2, height, width), np.uint8)
    one_pixel[height // 2, width // 3], corner[-1, -1] = 1, 1
    generator = np.random.default_rng(height)
    return {
        "empty": np.zeros((height, width), np.uint8),
        "full": np.ones((height, width), np.uint8),
        "one pixel": one_pixel,
        "a corner": corner,
        "sparse": (generator.random((height, width)) < 0.03).astype(np.uint8),
        "half": (generator.random((height, width)) < 0.5).astype(np.uint8),
    }


@pytest.mark.parametrize("metric", [Size(24, 18), Size(12, 9), Size(36, 30), Size(17, 23)])
@pytest.mark.parametrize("answer", ["empty", "full", "one pixel", "a corner", "sparse", "half"])
def test_ds_of_random_and_extreme_masks_is_that_of_a_slow_reference(answer, metric):
    """The image is 24x18, the network is shown 20x16; logits of 3 and -3 with noise keep ties away."""
    answered = masks(16, 20)[answer]
    logits = (answered * 6.0 - 3 + np.random.default_rng(1).normal(0, 0.1, answered.shape)).astype(np.float32)
    for name, mask in masks(18, 24).items():
        sample = Sample(name, np.random.default_rng(2).integers(0, 256, mask.shape, dtype=np.uint8), mask, {})
        score = score_image(Network(Given(logits), CPU), sample, Size(20, 16), metric, contrast="percentile").dice
        assert score == pytest.approx(ds_slowly(logits, mask, metric), abs=1e-12), name


# Means and their spread.


def test_dice_score_av_is_the_mean_over_images_and_repetitions():
    scores = draw_scores(0)
    total = sum(value for images in scores for value in images.values())
    assert dice_score_av(scores) == pytest.approx(total / 100, rel=1e-12)
    means = [sum(images.values()) / 10 for images in scores]
    np.testing.assert_allclose(repetition_means(scores), means, rtol=1e-12)
    middle = sum(means) / 10
    assert standard_deviation(scores) == pytest.approx(math.sqrt(sum((m - middle) ** 2 for m in means) / 9), rel=1e-9)
    assert standard_deviation(scores[:1]) is None


def interval_slowly(
    scores: list[dict], groups: dict[str, str], generator: np.random.Generator, num: int
) -> list[float]:
    clusters: dict[str, list[float]] = {}
    for images in scores:
        for key, value in images.items():
            clusters.setdefault(groups[key], []).append(value)
    names, means = list(clusters), []
    for _ in range(num):
        chosen = [names[generator.integers(len(names))] for _ in names]
        values = [value for name in chosen for value in clusters[name]]
        means.append(sum(values) / len(values))
    means.sort()
    return [means[int(0.025 * num)], means[int(0.975 * num) - 1]]


@pytest.mark.parametrize("size", [1, 3])
def test_the_bootstrap_draws_images_or_their_groups_with_all_their_scores(size):
    scores = draw_scores(1)
    groups = {f"image{n}": f"group{n // size}" for n in range(30)}
    ours = bootstrap_interval(scores, np.random.default_rng(0), None if size == 1 else groups)
    slow = interval_slowly(scores, groups, np.random.default_rng(1), 3000)
    width = slow[1] - slow[0]
    np.testing.assert_allclose(ours, slow, atol=0.08 * width)
    assert ours == bootstrap_interval(scores, np.random.default_rng(0), None if size == 1 else groups)


def test_repeating_the_same_scores_does_not_narrow_the_interval():
    scores = draw_scores(2, num_repetitions=3)
    once, ten_times = (bootstrap_interval(scores * times, np.random.default_rng(0)) for times in (1, 10))
    np.testing.assert_allclose(once, ten_times, rtol=1e-12)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """200 data sets of 30 images: 95 % and, as percentile bootstraps of few are, a little less."""
    hits = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(0.8, 0.1, 30)
        scores = [{f"image{n}": values[n] for n in range(30)}]
        low, high = bootstrap_interval(scores, np.random.default_rng(seed), num_resamples=1000)
        hits += low <= 0.8 <= high
    assert 175 <= hits <= 199


def tail_slowly(t: float, freedom: int) -> float:
    """The two-sided tail of Student's distribution: 1 minus the integral of its density from -t to t."""
    x = np.linspace(-t, t, 200_001)
    constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    return 1 - float(((density[1:] + density[:-1]) / 2 * np.diff(x)).sum())


@pytest.mark.parametrize("num_repetitions", [2, 3, 10])
@pytest.mark.parametrize("by", [0.0, 0.002, 0.02])
def test_the_paired_test_is_the_corrected_resampled_t_test(num_repetitions, by):
    first = draw_scores(3, num_repetitions)
    second = shifted(first, 4, -by, 0.01)
    d = [sum(one[key] - two[key] for key in one) / 10 for one, two in zip(first, second, strict=True)]
    mean = sum(d) / len(d)
    variance = sum((value - mean) ** 2 for value in d) / (len(d) - 1)
    t = abs(mean) / math.sqrt((1 / len(d) + 10 / 15) * variance)
    found = paired_test(first, second, num_train=15)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.p_value == pytest.approx(tail_slowly(t, len(d) - 1), abs=1e-6)
    back = paired_test(second, first, num_train=15)
    assert (back.mean, back.p_value) == (pytest.approx(-found.mean), pytest.approx(found.p_value))


def test_a_thousandth_between_noisy_rows_is_no_difference_and_a_tenth_is_one():
    first = draw_scores(5)
    assert paired_test(first, shifted(first, 6, -0.001, 0.02), 15).p_value > 0.2
    assert paired_test(first, shifted(first, 6, -0.1, 0.02), 15).p_value < 0.001


def test_rows_that_do_not_differ_at_all_or_everywhere_alike():
    first = [{"a": 0.5, "b": 0.75}] * 3
    assert paired_test(first, first, 15) == (0, 1)
    assert paired_test(first, [{"a": 0.25, "b": 0.5}] * 3, 15) == (0.25, 0)
    assert paired_test(first[:1], first[:1], 15) == (0, None)


def test_rows_of_other_images_are_not_compared():
    with pytest.raises(ValueError, match="same images"):
        differences(draw_scores(0), draw_scores(1))


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
