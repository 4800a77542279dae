"""Points of a growth curve: the mean over the images of a culture at one time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from glioma_dist.growth_curves.cultures import Placed

LEVEL = 0.95
SAME_TIME_H = 1 / 6
"""Images at most so many hours apart count as one time, because a microscope visits one field after another."""


@dataclass(frozen=True)
class Point:
    """The confluence of a culture at one time."""

    time_h: float
    """Mean of its images' times, in hours."""
    confluence: float
    """Mean of its images, weighted by their pixels; from 0 to 1."""
    low: float | None
    """Lower end of the 95 % t-interval of the mean over the fields, from 0 to 1. None for a single image."""
    high: float | None
    """Upper end of this interval."""
    fields: int
    """Number of images."""


def join(placed: Sequence[Placed]) -> tuple[list[Point], int]:
    """Return the points of one culture in the order of time, and how many images repeat a field of their point."""
    groups: list[list[Placed]] = []
    ordered = sorted(placed, key=lambda each: (each.hours, each.field, each.picture.name))
    seen: set[str] = set()
    repeated = 0
    for each in ordered:
        start = groups[-1][0].hours if groups else -math.inf
        # The next frame of a field is another time, however short the interval.
        if each.hours - start > SAME_TIME_H or (each.field in seen and each.hours > start):
            groups.append([])
            seen = set()
        repeated += each.field in seen
        seen.add(each.field)
        groups[-1].append(each)
    return [_mean(group) for group in groups], repeated


def _mean(group: Sequence[Placed]) -> Point:
    """The standard error is that of a weighted mean; with equal weights, s / sqrt(n)."""
    values = [each.picture.confluence for each in group]
    pixels = [each.picture.pixels for each in group]
    weights = [1.0 if None in pixels else float(each or 0) for each in pixels]
    total = math.fsum(weights)
    mean = math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / total
    start, num = group[0].hours, len(group)
    time_h = start + math.fsum(each.hours - start for each in group) / num
    mean = min(max(mean, min(values)), max(values))  # rounding, where all are equal
    if num == 1:
        return Point(time_h, mean, None, None, 1)
    squares = math.fsum((weight * (value - mean)) ** 2 for weight, value in zip(weights, values, strict=True))
    half = float(stdtrit(num - 1, 0.5 + LEVEL / 2)) * math.sqrt(squares * num / (num - 1)) / total
    return Point(time_h, mean, max(0.0, mean - half), min(1.0, mean + half), num)


def by_culture(placed: Sequence[Placed]) -> dict[str, list[Placed]]:
    """Group images by culture. Cultures are sorted by name, A2 before A10."""
    found: dict[str, list[Placed]] = defaultdict(list)
    for each in placed:
        found[each.culture].append(each)
    return {name: found[name] for name in sorted(found, key=_natural)}


def _natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Numbers in a name sort as numbers."""
    parts: list[tuple[int, int | str]] = []
    word = ""
    for character in f"{name}\0":
        if word and word.isdecimal() != character.isdecimal():
            parts.append((0, int(word)) if word.isdecimal() and len(word) < 20 else (1, word))
            word = ""
        word += character
    return parts, name
