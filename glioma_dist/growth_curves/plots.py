"""The plots of growth curves: a panel per culture, and all cultures in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from glioma_dist.errors import one_line
from glioma_dist.growth_curves.result import Culture
from glioma_dist.report.style import (
    BLUE,
    DARK_BLUE,
    GREEN,
    GREY,
    ORANGE,
    VIOLET,
    drawable,
    entitle,
    png_bytes,
    svg_bytes,
    tidy,
)
from glioma_dist.wording import short

MAX_PANELS, MAX_COLUMNS = 48, 6
"""Of a plot; more cultures make several plots."""
MAX_PAGES = 20
"""At most so many plots with panels."""
MAX_NAMED = 8
"""Cultures that get a style of their own; of more, lines cannot be told apart."""
STYLES = tuple(zip((BLUE, ORANGE, GREEN, VIOLET), ("-", "--", "-.", ":"), ("o", "s", "^", "D"), strict=True))
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
NAME_LENGTH = 26
BAND = "Band: 95 % t-interval of the mean over the fields."


def draw_wells(cultures: Sequence[Culture], bounds: tuple[float, float]) -> dict[str, bytes]:
    """Draw a panel per culture with its fit, confluence on a logarithmic axis. Returns PNG and SVG files by name."""
    pages = [cultures[first : first + MAX_PANELS] for first in range(0, len(cultures), MAX_PANELS)]
    pages = pages[:MAX_PAGES]
    files = {}
    for number, page in enumerate(pages, 1):
        figure = wells_figure(page, cultures, bounds)
        name = "wells" if len(pages) == 1 else f"wells_{number}"
        files |= {f"{name}.png": png_bytes(figure), f"{name}.svg": svg_bytes(figure)}
    return files


def draw_together(cultures: Sequence[Culture]) -> dict[str, bytes]:
    """Draw all cultures in one plot, confluence on a linear axis. Returns PNG and SVG files by name."""
    figure = together_figure(cultures)
    return {"together.png": png_bytes(figure), "together.svg": svg_bytes(figure)}


def wells_figure(page: Sequence[Culture], cultures: Sequence[Culture], bounds: tuple[float, float]) -> Figure:
    """Draw the panels of a page; the axes are the same on all pages, those of all `cultures`.

    bounds: lowest and highest confluence that may be fitted, from 0 to 1.
    """
    num_columns = min(MAX_COLUMNS, math.ceil(math.sqrt(len(page))))
    num_rows = math.ceil(len(page) / num_columns)
    width, height = max(5.6, 2.3 * num_columns + 0.7), 1.9 * num_rows + 1.5
    figure = Figure(figsize=(width, height))
    # Fixed margins, in inches: to have them computed takes as long as to draw.
    panels = figure.subplots(
        num_rows,
        num_columns,
        squeeze=False,
        sharex=True,
        sharey=True,
        gridspec_kw={
            "left": 0.75 / width,
            "right": 1 - 0.15 / width,
            "bottom": 1.05 / height,
            "top": 1 - 0.75 / height,
            "wspace": 0.1,
            "hspace": 0.42,
        },
    )
    low, high = _limits(cultures)
    for axes, culture in zip(panels.flat, page, strict=False):
        _draw_well(axes, culture, bounds)
    for axes in panels.flat[len(page) :]:
        axes.set_visible(False)
    for number, axes in enumerate(panels.flat[: len(page)]):
        is_lowest = number + num_columns >= len(page)
        axes.tick_params(labelbottom=is_lowest, labelsize=8)
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylim(low, high)
    for axes in panels.flat:
        axes.yaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.text(0.15 / width, 0.5, "confluence, %", rotation=90, va="center", fontsize=9)
    figure.text(0.5, 0.62 / height, "time, h", ha="center", fontsize=9)
    entitle(figure, "Growth of each culture, and hours in which it doubles", _caption(cultures))
    return figure


def _caption(cultures: Sequence[Culture]) -> str:
    lines = ["Filled: points of the exponential phase; line: its fit; grey: confluence that may be fitted."]
    if any(point.low is not None for culture in cultures for point in culture.points):
        lines.append(BAND)
    if any(point.confluence == 0 for culture in cultures for point in culture.points):
        lines.append("Points of 0 % are not shown.")
    return "\n".join((lines[0], " ".join(lines[1:]))).rstrip()


def _draw_well(axes: Axes, culture: Culture, bounds: tuple[float, float]) -> None:
    points, fit = culture.points, culture.fit
    highest = bounds[1] if fit is None else fit.max_confluence
    axes.axhspan(100 * bounds[0], 100 * highest, color="#f2f2f2", linewidth=0)
    _draw_band(axes, culture, BLUE)
    inside = [point for point in points if culture.in_stretch(point)]
    outside = [point for point in points if not culture.in_stretch(point)]
    for chosen, face in ((outside, "white"), (inside, BLUE)):
        axes.plot(
            [point.time_h for point in chosen],
            [100 * point.confluence or math.nan for point in chosen],
            color=BLUE,
            linestyle="none",
            marker="o",
            markersize=3.2,
            markeredgewidth=0.8,
            markerfacecolor=face,
        )
    told = one_line(culture.reason.partition(":")[0], NAME_LENGTH)
    if fit is not None:
        hours = np.array([fit.start_h, fit.end_h])
        axes.plot(hours, 100 * fit.confluence(hours), color=DARK_BLUE, linewidth=1.6)
        told = f"{short(fit.doubling_time_h)} h ({short(fit.doubling_time_low_h)} to {short(fit.doubling_time_high_h)})"
    name = drawable(one_line(culture.name, NAME_LENGTH))
    axes.set_title(f"{name}\n{told}", loc="left", fontsize=8, color="black" if fit else GREY)
    tidy(axes)


def _draw_band(axes: Axes, culture: Culture, colour: str) -> None:
    """The intervals of the points that have one."""
    banded = [point for point in culture.points if point.low is not None and point.high is not None]
    if banded:
        axes.fill_between(
            [point.time_h for point in banded],
            [100 * (point.low or 1e-4) for point in banded],
            [100 * (point.high or 1e-4) for point in banded],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )


def _limits(cultures: Sequence[Culture]) -> tuple[float, float]:
    """Of the logarithmic axis, in percent: whole steps of `TICKS` around the points that are not 0."""
    values = [100 * point.confluence for culture in cultures for point in culture.points if point.confluence > 0]
    low, high = min(values, default=1.0), max(values, default=100.0)
    return (
        max((tick for tick in TICKS if tick <= low), default=TICKS[0]) * 0.9,
        min((tick for tick in TICKS if tick >= high), default=TICKS[-1]) * 1.1,
    )


def together_figure(cultures: Sequence[Culture]) -> Figure:
    """Draw confluence over time, a line per culture; names if there are at most 8 cultures."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    axes = figure.subplots()
    are_few = len(cultures) <= MAX_NAMED
    has_band = False
    for number, (culture, (colour, dash, marker)) in enumerate(zip(cultures, cycle(STYLES), strict=False)):
        hours = [point.time_h for point in culture.points]
        values = [100 * point.confluence for point in culture.points]
        if not are_few:
            axes.plot(hours, values, color=BLUE, linewidth=0.8, alpha=0.5, marker="o", markersize=1.5)
            continue
        _draw_band(axes, culture, colour)
        has_band = has_band or any(point.low is not None for point in culture.points)
        face = colour if number < len(STYLES) else "white"
        axes.plot(
            *(hours, values),
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=3.5,
            markerfacecolor=face,
            linewidth=1.3,
            label=drawable(one_line(culture.name, 40)),
        )
    axes.set_xlabel("time, h")
    axes.set_ylabel("confluence, %")
    axes.set_ylim(bottom=0)
    tidy(axes)
    if are_few:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    caption = BAND if has_band else "One dot: the mean over the fields of a culture at one time."
    entitle(figure, f"Growth of {len(cultures)} culture{'' if len(cultures) == 1 else 's'}", caption)
    return figure
