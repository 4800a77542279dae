"""Curves and histograms of a report, as SVG that takes its colours from the page: dark, light, on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from glioma_dist.wording import short

WIDTH, HEIGHT = 300, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 10, 38
NUM_BINS = 20


@dataclass(frozen=True)
class CurvePoint:
    """Mean confluence of a culture at a time, from 0 to 1, with its interval where there is one."""

    hours: float
    confluence: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """A culture over time. remark: its doubling time, for example, or why it has none."""

    name: str
    points: tuple[CurvePoint, ...]
    remark: str = ""

    def describe(self) -> str:
        """Say the curve in words."""
        first, last = self.points[0], self.points[-1]
        text = f"confluence {100 * first.confluence:.1f} % at {short(first.hours)} h"
        if last is not first:
            text += f", {100 * last.confluence:.1f} % at {short(last.hours)} h"
        return f"{self.name}: {text}{f'; {self.remark}' if self.remark else ''}"


def draw_curves(curves: Sequence[Curve]) -> list[str]:
    """Draw an SVG for each curve, all with the same axes: hours, and confluence in percent."""
    points = [point for curve in curves for point in curve.points]
    highest = max(max(point.confluence, point.high or 0) for point in points)
    y_end = _rounded_up(min(100.0, 100 * highest))
    start, end = min(point.hours for point in points), max(point.hours for point in points)
    return [_curve(curve, start, end if end > start else start + 1, y_end) for curve in curves]


def draw_histogram(values: Sequence[float]) -> str:
    """Draw a histogram of the confluence as SVG. values: from 0 to 1."""
    label = f"Histogram: confluence of {len(values)} images, from {100 * min(values):.1f} to {100 * max(values):.1f} %"
    return draw_counts([100 * value for value in values], 100, "confluence (%)", " %", label)


def draw_counts(values: Sequence[float], largest: float, name: str, unit: str, label: str, top: int = 0) -> str:
    """Draw a histogram of any values from 0 to `largest` as SVG. name: of the axis. unit: after each value. label: for
    those who cannot see it. top: the highest count that the axis has room for, if more than this histogram has."""
    counts = count_in_bins(values, largest)
    end = _rounded_up(max(*counts, top))
    axes = _Axes(0, largest, end)
    parts = [axes.grid(name, "images", is_count=True)]
    for number, count in enumerate(counts):
        low, high = number * largest / NUM_BINS, (number + 1) * largest / NUM_BINS
        x, y = axes.x(low), axes.y(count)
        parts.append(
            f"<rect class='bar' x='{x + 0.5:.1f}' y='{y:.1f}' width='{axes.x(high) - x - 1:.1f}' "
            f"height='{axes.y(0) - y:.1f}'><title>{low:g} to {high:g}{unit}: {count}</title></rect>"
        )
    return _svg(label, parts)


def count_in_bins(values: Sequence[float], largest: float) -> list[int]:
    """Count the values in each bin of a histogram from 0 to `largest`."""
    counts = [0] * NUM_BINS
    for value in values:
        counts[min(NUM_BINS - 1, int(value / largest * NUM_BINS))] += 1
    return counts


class _Axes:
    """Places on the SVG. x from `start` to `end`, y from 0 to `top`."""

    def __init__(self, start: float, end: float, top: float) -> None:
        self.start, self.end, self.top = start, end, top

    def x(self, value: float) -> float:
        return LEFT + (value - self.start) / (self.end - self.start) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.top * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_label: str, y_label: str, is_count: bool = False) -> str:
        parts = []
        for value in _ticks(0, self.top, is_count):
            y = self.y(value)
            parts.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
            parts.append(f"<text x='{LEFT - 5}' y='{y + 3.5:.1f}' text-anchor='end'>{value:g}</text>")
        for value in _ticks(self.start, self.end):
            x = self.x(value)
            parts.append(f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 14}' text-anchor='middle'>{value:g}</text>")
        middle = (HEIGHT - BOTTOM + TOP) / 2
        parts.append(f"<text x='{(WIDTH + LEFT) / 2}' y='{HEIGHT - 6}' text-anchor='middle'>{x_label}</text>")
        parts.append(
            f"<text x='11' y='{middle}' text-anchor='middle' transform='rotate(-90 11 {middle})'>{y_label}</text>"
        )
        return "".join(parts)


def _curve(curve: Curve, start: float, end: float, y_end: float) -> str:
    axes = _Axes(start, end, y_end)
    parts = [axes.grid("hours", "confluence (%)")]
    places = [(axes.x(point.hours), axes.y(100 * point.confluence), point) for point in curve.points]
    band = [(x, point) for x, _, point in places if point.low is not None and point.high is not None]
    if len(band) > 1:
        upper = [f"{x:.1f},{axes.y(min(y_end, 100 * (point.high or 0))):.1f}" for x, point in band]
        lower = [f"{x:.1f},{axes.y(max(0.0, 100 * (point.low or 0))):.1f}" for x, point in reversed(band)]
        parts.append(f"<polygon class='band' points='{' '.join([*upper, *lower])}'/>")
    parts.append(f"<polyline class='line' points='{' '.join(f'{x:.1f},{y:.1f}' for x, y, _ in places)}'/>")
    for x, y, point in places:
        interval = (
            "" if point.low is None or point.high is None else f" ({100 * point.low:.1f} to {100 * point.high:.1f})"
        )
        parts.append(
            f"<circle class='point' cx='{x:.1f}' cy='{y:.1f}' r='2.5'><title>{short(point.hours)} h: "
            f"{100 * point.confluence:.1f} %{interval}</title></circle>"
        )
    return _svg(curve.describe(), parts)


def _svg(label: str, parts: Sequence[str]) -> str:
    return (
        f"<svg class='plot' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(label, quote=True)}'>"
        f"{''.join(parts)}</svg>"
    )


def _step(span: float, wanted: int = 5) -> float:
    """1, 2 or 5 times a power of ten, so that about `wanted` steps make the span."""
    rough = span / wanted
    power = 10 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _ticks(start: float, end: float, is_whole: bool = False) -> list[float]:
    step = _step(end - start)
    if is_whole:
        step = max(1.0, step)
    first = math.ceil(start / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(end / step + 1e-9) + 1)]


def _rounded_up(value: float) -> float:
    """The end of an axis from 0 that has room for `value`."""
    value = max(value, 1.0)
    step = _step(value)
    return math.ceil(value / step - 1e-9) * step
