"""Scores over repetitions: the article's means, how far they can be trusted, and whether two rows differ.

A row's scores are a table: one dict a repetition, test image -> DS. Everything random is drawn from a generator that is
given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

Scores = Sequence[Mapping[str, float]]
"""For each repetition the DS of each of its test images, by key."""
NUM_RESAMPLES = 10_000
LEVEL = 0.95


def repetition_means(scores: Scores) -> np.ndarray:
    """The mean over the test images of each repetition: (K,) fp64."""
    return np.array([math.fsum(images.values()) / len(images) for images in scores])


def dice_score_av(scores: Scores) -> float:
    """DiceScoreAV of the article: DS averaged over the N test images and over the K repetitions."""
    return float(np.mean(repetition_means(scores)))


def standard_deviation(scores: Scores) -> float | None:
    """Of the repetitions' means, with K - 1 below; None for one repetition."""
    means = repetition_means(scores)
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


def bootstrap_interval(
    scores: Scores,
    generator: np.random.Generator,
    groups: Mapping[str, str] | None = None,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float]:
    """An interval for DiceScoreAV on other images of the same kind, by the percentiles of a bootstrap over images.

    An image that is tested in several repetitions is one observation, and so are the images of one group (key ->
    group): whole clusters are drawn with replacement (Davison and Hinkley 1997, Bootstrap Methods and their
    Application, section 3.8), each with all its scores. Repetitions of the same 30 images, drawn as if they were
    new ones, would give an interval that shrinks with K for nothing.
    """
    sums: dict[str, list[float]] = {}
    for images in scores:
        for key, score in images.items():
            sums.setdefault(groups[key] if groups else key, []).append(score)
    totals = np.array([[math.fsum(values), len(values)] for values in sums.values()])
    drawn = generator.integers(len(totals), size=(num_resamples, len(totals)))
    resampled = totals[drawn].sum(axis=1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(resampled[:, 0] / resampled[:, 1], [tail, 100 - tail])
    return float(low), float(high)


def differences(first: Scores, second: Scores) -> list[dict[str, float]]:
    """First minus second, image by image. Raises ValueError where they were not tested on the same images."""
    if [set(images) for images in first] != [set(images) for images in second]:
        raise ValueError("only rows that were tested on the same images, repetition by repetition, can be compared")
    return [{key: one[key] - two[key] for key in one} for one, two in zip(first, second, strict=True)]


class PairedTest(NamedTuple):
    """mean: of first minus second. p_value: two-sided; None for one repetition, which cannot be tested."""

    mean: float
    p_value: float | None


def paired_test(first: Scores, second: Scores, num_train: int) -> PairedTest:
    """Whether two rows differ, paired by repetition: the corrected resampled t-test.

    Repetitions share images, and a plain t-test finds differences that are not there. The variance of the mean of K
    differences is taken as (1 / K + N / num_train) times theirs, N images tested and `num_train` trained on (Nadeau and
    Bengio 2003, Machine Learning 52, section 5.3); the distribution is Student's of K - 1 degrees of freedom. Where all
    repetitions differ by exactly the same, p is 1 for no difference and 0 for any.
    """
    paired = differences(first, second)
    means = repetition_means(paired)
    mean, count = float(np.mean(means)), len(means)
    if count < 2:
        return PairedTest(mean, None)
    num_test = np.mean([len(images) for images in paired])
    variance = (1 / count + num_test / num_train) * float(np.var(means, ddof=1))
    if variance == 0:
        return PairedTest(mean, float(mean == 0))
    return PairedTest(mean, float(2 * stdtr(count - 1, -abs(mean) / math.sqrt(variance))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, so that the chance of any false difference among them is what each says (Holm 1979,
    Scandinavian Journal of Statistics 6): the smallest times their number, the next times one less, never falling."""
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = so_far
    return adjusted
