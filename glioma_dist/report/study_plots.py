"""The plots of a study's report: scores with their spread, curves over epochs, masks side by side; as PNG."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glioma_dist.data.sample import read_image
from glioma_dist.data.transforms import normalize_intensity

COLOURS = ("#767676", "#c8501e", "#1f6fb5", "#2e8b57", "#7a4d9f")
"""Of starting weights, in the order in which they come."""
GREY = "#767676"
PICTURE_PX = 420
"""Width of a picture of figure 6's panel."""
OVERLAY = "*.overlay.png"


def draw_plot(results: dict[str, Any]) -> bytes | None:
    """The study's plot; None where there is nothing to draw yet."""
    ways = {
        "table": draw_scores,
        "training-set size": draw_training_set_size,
        "epochs": draw_epochs,
        "pictures": draw_pictures,
    }
    figure = ways[results["shows"]](results)
    if figure is None:
        return None
    file = io.BytesIO()
    # Without the library's version and date the same numbers give the same bytes.
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def draw_scores(results: dict[str, Any]) -> Figure | None:
    """Each row's mean with its interval, the repetitions as dots, the article's score as a cross."""
    rows = [row for row in results["rows"] if row["mean"] is not None]
    if not rows:
        return None
    figure = Figure(figsize=(9, 1.4 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        low, high = row["interval"]
        axes.plot([low, high], [place, place], color="#1f6fb5", linewidth=2, label="interval" if place == 0 else None)
        axes.plot(row["mean"], place, "o", color="#1f6fb5", label="ours" if place == 0 else None)
        dots = row["repetitions"]
        axes.plot(dots, [place + 0.22] * len(dots), ".", color=GREY, label="repetitions" if place == 0 else None)
        if row["article"]:
            axes.plot(row["article"], [place] * len(row["article"]), "x", color="#c8501e", markersize=8)
    if any(row["article"] for row in rows):
        axes.plot([], [], "x", color="#c8501e", label="article")
    names = [f"{row['model']}, {row['start']}\n{row['fine_tuning']}, {row['compared']}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("DiceScoreAV")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    _tidy(axes)
    return figure


def draw_training_set_size(results: dict[str, Any]) -> Figure | None:
    """DiceLossAV against the number of training images, a panel a model, bars of one standard deviation."""
    rows = [row for row in results["rows"] if row["mean"] is not None]
    models = list(dict.fromkeys(row["model"] for row in rows))
    if not rows:
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
        axes.set(title=model, xlabel="training images", ylabel="DiceLossAV")
        axes.set_xticks(sorted({row["num_train"] for row in rows}))
        axes.legend(frameon=False, fontsize=8)
        _tidy(axes)
    return figure


def draw_epochs(results: dict[str, Any]) -> Figure | None:
    """1 - Dice of the validation images against the epoch: mean and range of the repetitions, a panel a model."""
    curves = [curve for curve in results["curves"] if any(curve["repetitions"])]
    models = list(dict.fromkeys(curve["model"] for curve in curves))
    if not curves:
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
        axes.set(title=model, xlabel="epoch", ylabel="1 - Dice, validation")
        axes.legend(frameon=False, fontsize=8)
        _tidy(axes)
    return figure


def draw_pictures(results: dict[str, Any]) -> Figure | None:
    """The image and, beside it, the mask of each starting weight, a row a model."""
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
    for each, path in found:
        axes = panels[models.index(each["model"])][1 + starts.index(each["start"])]
        _show(axes, read_image(path), f"{each['model']}: {each['start']}")
    return figure


def _show(axes: Axes, picture: np.ndarray, title: str) -> None:
    scale = min(1.0, 2 * PICTURE_PX / picture.shape[1])
    smaller = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    axes.imshow(smaller, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)


def _num_train(row: dict[str, Any]) -> int:
    return row["num_train"]


def _tidy(axes: Axes) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
