"""The curves of a training: loss and Dice against steps, of the training batches and of the validations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glioma_dist.report.style import BLUE, ORANGE, drawable, entitle, tidy

MAX_POINTS = 400
"""Points of a line; where a run has more steps, each point is the mean of consecutive ones."""


@dataclass(frozen=True)
class Curve:
    """Scores in the order of the steps; arrays of one length."""

    steps: np.ndarray
    loss: np.ndarray
    dice: np.ndarray


def draw_curves(train: Curve, val: Curve, name: str) -> Figure:
    """Two panels, loss and Dice. name: of the run, for the title. `val` may be empty, `train` may not."""
    figure = Figure(figsize=(9.6, 3.8))
    # Fixed margins: to have them computed takes as long as to draw.
    panels = figure.subplots(
        1, 2, gridspec_kw={"left": 0.06, "right": 0.985, "bottom": 0.2, "top": 0.85, "wspace": 0.14}
    )
    for axes, title, ours, theirs in zip(
        panels, ("Loss", "Dice"), (train.loss, train.dice), (val.loss, val.dice), strict=True
    ):
        mean_of = _draw_line(axes, train.steps, ours)
        axes.plot(val.steps, theirs, color=ORANGE, marker="o", markersize=3, linewidth=1.4, label="validation")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.locator_params(nbins=6)
        tidy(axes)
    panels[1].legend(frameon=False, fontsize=8)
    caption = "Validation: mean over all validation images."
    caption += f" Training: mean over the images of a batch{f' and over {mean_of} steps' if mean_of > 1 else ''}."
    caption += " Band: lowest to highest of these steps." if mean_of > 1 else ""
    entitle(figure, drawable(name), caption)
    return figure


def _draw_line(axes: Axes, steps: np.ndarray, values: np.ndarray) -> int:
    """Draw the training's line. Returns how many steps each of its points stands for."""
    each = -(-len(steps) // MAX_POINTS)
    starts = np.arange(0, len(steps), each)
    counts = np.diff([*starts, len(steps)])
    middle, mean = (np.add.reduceat(column, starts) / counts for column in (steps.astype(float), values))
    axes.plot(middle, mean, color=BLUE, linewidth=1.2, label="training")
    if each > 1:
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        axes.fill_between(middle, low, high, color=BLUE, alpha=0.18, linewidth=0)
    return each
