"""The plots of a study's report: scores with their spread, curves over epochs, masks side by side; as PNG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glioma_dist.data.sample import read_image
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.report.style import BLUE, GREEN, GREY, ORANGE, VIOLET, entitle, png_bytes, tidy

COLOURS = (GREY, ORANGE, BLUE, GREEN, VIOLET)
"""Of starting weights, in the order in which they come."""
PICTURE_PX = 420
"""Width of a picture of figure 6's panel."""
OVERLAY = "*.overlay.png"
NAMING = {"model": "model", "start": "starting weights", "fine_tuning": "fine-tuning", "compared": "compared at"}
"""Fields of a row that distinguish it from others, and their names for readers."""


def draw_plot(results: dict[str, Any]) -> bytes | None:
    """The study's plot; None where there is nothing to draw yet."""
    ways = {
        "table": draw_scores,
        "training-set size": draw_training_set_size,
        "epochs": draw_epochs,
        "pictures": draw_pictures,
    }
    figure = ways[results["shows"]](results)
    return None if figure is None else png_bytes(figure)


def draw_scores(results: dict[str, Any]) -> Figure | None:
    """Each row's mean with its interval, the repetitions as dots, the article's score as a cross. Rows that differ only
    in the model and in what is compared get a panel for each comparison, sorted by score."""
    rows = [row for row in results["rows"] if row["mean"] is not None]
    if not rows:
        return None
    panels = _panels(rows)
    longest = max(len(own) for own in panels.values())
    figure = Figure(
        figsize=(4.5 + 4.5 * len(panels), 1.7 + (0.3 if len(panels) > 1 else 0.42) * longest), layout="constrained"
    )
    alike = [name for name in NAMING if len({row[name] for row in rows}) == 1]
    for axes, (title, own) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharex=True)[0], panels.items(), strict=True
    ):
        _draw_rows(axes, own)
        hidden = {*alike, "compared"} if len(panels) > 1 else {*alike}
        axes.set_yticks(range(len(own)), [_row_name(row, hidden) for row in own], fontsize=8)
        axes.set_title(title, loc="left", color=GREY, fontsize=10)
        axes.set_xlabel("DiceScoreAV")
    shown = [Line2D([], [], color=BLUE, marker="o", label=f"mean and {results['protocol']['level']:.0%} interval")]
    if any(len(row["repetitions"]) > 1 for row in rows):
        shown.append(Line2D([], [], color=GREY, marker=".", linestyle="none", label="one repetition"))
    if any(row["article"] for row in rows):
        shown.append(Line2D([], [], color=ORANGE, marker="x", linestyle="none", label="the article"))
    figure.legend(handles=shown, loc="outside right upper", frameon=False, fontsize=8)
    caption = ["Intervals: by a bootstrap over the test images."]
    if alike:
        caption.append(f"All rows: {'; '.join(f'{NAMING[name]} {rows[0][name]}' for name in alike)}.")
    if results["preset"] == "small":
        caption.append("Preset small: a few steps at a quarter of the size. The scores show only that the study runs.")
    entitle(figure, results["title"], "\n".join(caption))
    return figure


def _panels(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Title -> its rows: as they come, or, where each model has one row for each comparison, sorted by score."""
    compared = list(dict.fromkeys(row["compared"] for row in rows))
    places = {(row["model"], row["compared"]) for row in rows}
    if len(compared) == 1 or len(places) < len(rows) or len({row["model"] for row in rows}) < 3:
        return {"": list(rows)}
    groups = {title: [row for row in rows if row["compared"] == title] for title in compared}
    return {title: sorted(own, key=lambda row: -row["mean"]) for title, own in groups.items()}


def _draw_rows(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        axes.plot(row["interval"], [place, place], color=BLUE, linewidth=2)
        axes.plot(row["mean"], place, "o", color=BLUE)
        if len(row["repetitions"]) > 1:
            axes.plot(row["repetitions"], [place + 0.22] * len(row["repetitions"]), ".", color=GREY)
        axes.plot(row["article"], [place] * len(row["article"]), "x", color=ORANGE, markersize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    tidy(axes)


def _row_name(row: dict[str, Any], hidden: set[str]) -> str:
    """What distinguishes a row from the others, in two lines where it is much."""
    lines = [
        [row[name] for name in pair if name not in hidden] for pair in (("model", "start"), ("fine_tuning", "compared"))
    ]
    return "\n".join(", ".join(line) for line in lines if line)


def draw_training_set_size(results: dict[str, Any]) -> Figure | None:
    """DiceLossAV against the number of training images, a panel a model, bars of one standard deviation.
    None for fewer than two numbers of images."""
    rows = [row for row in results["rows"] if row["mean"] is not None]
    models = list(dict.fromkeys(row["model"] for row in rows))
    if len({row["num_train"] for row in rows}) < 2:
        return None
    figure = Figure(figsize=(1 + 5 * len(models), 4), layout="constrained")
    starts = list(dict.fromkeys(row["start"] for row in results["rows"]))
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False, sharey=True)[0], models, strict=True):
        for colour, start in zip(COLOURS, starts, strict=False):
            own = sorted((row for row in rows if (row["model"], row["start"]) == (model, start)), key=_num_train)
            if not own:
                continue
            bars = [row["standard_deviation"] or 0 for row in own]
            x, y = [row["num_train"] for row in own], [1 - row["mean"] for row in own]
            axes.errorbar(x, y, yerr=bars, color=colour, marker="o", capsize=3, label=start)
        axes.set(xlabel="training images", ylabel="DiceLossAV")
        axes.set_title(model, loc="left", color=GREY, fontsize=10)
        axes.set_xticks(sorted({row["num_train"] for row in rows}))
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    entitle(figure, results["title"], "Bars: one standard deviation of the repetitions' means, to each side.")
    return figure


def draw_epochs(results: dict[str, Any]) -> Figure | None:
    """1 - Dice of the validation images against the epoch: mean and range of the repetitions, a panel a model.
    None for fewer than two epochs."""
    curves = [curve for curve in results["curves"] if any(curve["repetitions"])]
    models = list(dict.fromkeys(curve["model"] for curve in curves))
    if len({epoch for curve in curves for points in curve["repetitions"] for epoch, _ in points}) < 2:
        return None
    figure = Figure(figsize=(1 + 5 * len(models), 4), layout="constrained")
    starts = list(dict.fromkeys(curve["start"] for curve in results["curves"]))
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False, sharey=True)[0], models, strict=True):
        for curve in (each for each in curves if each["model"] == model):
            colour = COLOURS[starts.index(curve["start"]) % len(COLOURS)]
            losses: dict[int, list[float]] = defaultdict(list)
            for epoch, loss in (point for points in curve["repetitions"] for point in points):
                losses[epoch].append(loss)
            epochs = sorted(losses)
            axes.plot(epochs, [np.mean(losses[epoch]) for epoch in epochs], color=colour, label=curve["start"])
            low, high = ([choose(losses[epoch]) for epoch in epochs] for choose in (min, max))
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="epoch", ylabel="1 - Dice, validation")
        axes.set_title(model, loc="left", color=GREY, fontsize=10)
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    entitle(figure, results["title"], "Lines: mean of the repetitions. Bands: from their lowest to their highest.")
    return figure


def draw_pictures(results: dict[str, Any]) -> Figure | None:
    """The image and, beside it, the mask of each starting weight, a row a model. Where there is no mask, the reason."""
    found = [(each, path) for each in results["pictures"] for path in sorted(Path(each["folder"]).glob(OVERLAY))[:1]]
    models = list(dict.fromkeys(each["model"] for each, _ in found))
    if not found:
        return None
    drawn = {each["start"] for each, _ in found}
    starts = [start for start in dict.fromkeys(row["start"] for row in results["rows"]) if start in drawn]
    image = read_image(Path(found[0][0]["image"]))
    height = PICTURE_PX / 100 * image.shape[0] / image.shape[1]
    size = (PICTURE_PX / 100 * (1 + len(starts)), (height + 0.35) * len(models))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(models), 1 + len(starts), squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row in panels:
        _show(row[0], normalize_intensity(image, "percentile"), "the image")
    shown = {(each["model"], each["start"]): path for each, path in found}
    reasons = {(row["model"], row["start"]): row["status"] for row in results["rows"] if row["mean"] is None}
    for row, model in zip(panels, models, strict=True):
        for axes, start in zip(row[1:], starts, strict=True):
            path, title = shown.get((model, start)), f"{model}: {start}"
            if path:
                _show(axes, read_image(path), title)
            else:
                axes.set_title(title, fontsize=9)
                reason = fill(reasons.get((model, start), "no such run"), 30)
                axes.text(0.5, 0.5, reason, ha="center", va="center", color=GREY, transform=axes.transAxes)
    return figure


def _show(axes: Axes, picture: np.ndarray, title: str) -> None:
    scale = min(1.0, 2 * PICTURE_PX / picture.shape[1])
    smaller = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    axes.imshow(smaller, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)


def _num_train(row: dict[str, Any]) -> int:
    return row["num_train"]
