"""The resolution benchmark's table and plots, made from the rows that glioma-dist bench resolution wrote."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from glioma_dist.files import write_atomically

OURS = "glioma-dist"
CARDS_GB = (8, 16, 24, 48, 80)
"""Memory of the graphics cards that plots show."""
COLOURS = {
    (OURS, "none"): "#5aa9e6",
    (OURS, "selective"): "#1f6fb5",
    (OURS, "full"): "#0b2f5c",
    ("segmentation_models.pytorch", "none"): "#c8501e",
    ("transformers eager", "none"): "#7a4d9f",
}
GREY = "#767676"
LINE_HEIGHT = 0.05
"""Of a line of text, as a share of the axes' height."""


class Variant(NamedTuple):
    """What one line of a table or plot is about."""

    network: str
    level: str
    layout: str
    precision: str

    @property
    def name(self) -> str:
        """Without the precision."""
        parts = [self.network, f"checkpointing {self.level}" if self.network == OURS else ""]
        return ", ".join(part for part in [*parts, self.layout if self.layout != "contiguous" else ""] if part)


def write_report(rows: list[dict], folder: Path) -> None:
    """Write resolution.csv, resolution.md, memory.png and speed.png into `folder`.

    rows: as in resolution.json; those of kind "step" are cells, those of kind "largest" what the search found.
    """
    write_atomically(folder / "resolution.csv", csv_text(rows))
    write_atomically(folder / "resolution.md", markdown_text(rows))
    steps = [row for row in rows if row["kind"] == "step"]
    for name, figure in (("memory.png", draw_memory(steps)), ("speed.png", draw_speed(steps))):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
        write_atomically(folder / name, picture.getvalue())


def csv_text(rows: list[dict]) -> str:
    """All rows and columns; lists and tables in a cell are joined with spaces."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _flat(value) for name, value in row.items()})
    return file.getvalue()


def _flat(value: object) -> object:
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else value


def markdown_text(rows: list[dict]) -> str:
    """Tables of memory, speed, and each level's cost in time; and of the largest that trains, where it was sought."""
    steps = [row for row in rows if row["kind"] == "step"]
    first = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    parts = [
        f"# U-Net {first['encoder']}: what a training step takes, by image size\n",
        f"Batch {first['batch_size']}, {first['device']}; {versions}; commit {first['commit']}.\n",
        f"```\n{first['command']}\n```\n",
        _table("Peak memory, GiB", steps, lambda row: f"{row['peak_gib']:.2f}" if row["peak_gib"] else "–"),
        _table("Images a second", steps, lambda row: _short(row["images_per_second"])),
    ]
    if any(row["images_per_second_with_data"] for row in steps):
        title = f"Images a second with data loading ({first['data']}, {first['workers']} workers)"
        parts.append(_table(title, steps, lambda row: _short(row["images_per_second_with_data"])))
    if any(row.get("waiting_share") is not None for row in steps):
        title = "Time spent waiting for data, %"
        parts.append(_table(title, steps, lambda row: _percent(row.get("waiting_share"))))
    if any("tflop" in row for row in steps):
        parts.append(_utilisation(steps))
    plain = {_place(row): row["median_seconds"] for row in steps if row["level"] == "none" and row["status"] == "ok"}
    compared = [row for row in steps if row["network"] == OURS and row["level"] != "none" and _place(row) in plain]
    if compared:
        title = "Time of a step, in times that of the level none"
        parts.append(_table(title, compared, lambda row: f"{row['median_seconds'] / plain[_place(row)]:.2f}"))
    largest = [row for row in rows if row["kind"] == "largest"]
    return "\n".join([*parts, *([_largest_table(largest)] if largest else [])])


def _table(title: str, rows: list[dict], text: Callable[[dict], str]) -> str:
    """A line for each variant, a column for each size; what did not end well says how it ended."""
    sizes = _sizes(rows)
    cells = {(_variant(row), row["size"]): text(row) if row["status"] == "ok" else row["status"] for row in rows}
    lines = [f"## {title}\n", f"| | | {' | '.join(sizes)} |", "|---|---|" + "---:|" * len(sizes)]
    for variant in dict.fromkeys(map(_variant, rows)):
        found = " | ".join(cells.get((variant, size), "–") for size in sizes)
        lines.append(f"| {variant.name} | {variant.precision} | {found} |")
    return "\n".join(lines) + "\n"


def _utilisation(rows: list[dict]) -> str:
    """Model FLOPs utilisation, where the device's peak is known."""
    if not any(row.get("mfu") is not None for row in rows):
        return (
            "## Model FLOPs utilisation\n\nNot given: the peak speed of this device in this precision is not in the "
            "table of glioma_dist/benchmark/peak_speed.py.\n"
        )
    return _table("Model FLOPs utilisation, %", rows, lambda row: _percent(row.get("mfu")))


def _percent(share: float | None) -> str:
    return "–" if share is None else _short(100 * share)


def _largest_table(rows: list[dict]) -> str:
    lines = ["## The largest that trains, to 5 %\n", "| | | sought | found | limited by |", "|---|---|---|---|---|"]
    for row in rows:
        variant = _variant(row)
        found = f"{row['size']}, batch {row['batch_size']}" if row["status"] == "ok" else "none"
        lines.append(f"| {variant.name} | {variant.precision} | {row['sought']} | {found} | {row['limited_by']} |")
    return "\n".join(lines) + "\n"


def draw_memory(rows: list[dict]) -> Figure:
    """Peak memory against the image's size, with the memory of common cards."""
    return _draw(rows, "peak_gib", "Peak memory of a training step, GiB", CARDS_GB, height_of_ended=1)


def draw_speed(rows: list[dict]) -> Figure:
    """Images a second against the image's size, batches at hand."""
    return _draw(rows, "images_per_second", "Images trained on in a second", (), height_of_ended=0)


def _draw(rows: list[dict], column: str, title: str, cards: tuple[int, ...], height_of_ended: float) -> Figure:
    """A panel for each precision, both axes logarithmic; a line for each variant, those of baselines dashed."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    figure = Figure(figsize=(1 + 7.5 * len(precisions), 5), layout="constrained")
    values = [row[column] for row in rows if row[column]]
    low, high = (min(values) / 1.3, max(values) * 1.3) if values else (1, 10)
    for axes, precision in zip(figure.subplots(1, len(precisions), squeeze=False)[0], precisions, strict=True):
        axes.set(xscale="log", yscale="log", ylim=(low, high))
        axes.set_title(precision, loc="left", color=GREY)
        _name_sizes(axes, rows)
        _name_values(axes)
        for card in cards:
            if low < card < high:
                axes.axhline(card, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
                place = {"xy": (0.01, card), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
                axes.annotate(f"{card} GB card", xytext=(0, 2), color=GREY, fontsize=8, **place)
        _draw_lines(axes, [row for row in rows if row["precision"] == precision], column, height_of_ended)
    first = rows[0]
    figure.suptitle(
        f"{title}: U-Net {first['encoder']}, batch {first['batch_size']}, {first['device']}", x=0.01, ha="left"
    )
    return figure


def _draw_lines(axes: Axes, rows: list[dict], column: str, height_of_ended: float) -> None:
    """Lines, with their names beside the axes at the height where each ends; those that end before the largest size
    are named at `height_of_ended`, in shares of the axes' height."""
    labels = []
    for variant in dict.fromkeys(map(_variant, rows)):
        own = sorted((row for row in rows if _variant(row) == variant), key=lambda row: row["megapixels"])
        points = [(row["megapixels"], row[column]) for row in own if row[column]]
        colour = COLOURS.get((variant.network, variant.level), GREY)
        style = {
            "linestyle": "-" if variant.network == OURS else "--",
            "markerfacecolor": colour if variant.layout == "contiguous" else "white",
        }
        axes.plot(*zip(*points, strict=True) if points else ([], []), color=colour, marker="o", **style)
        height = axes.transLimits.transform(axes.transScale.transform(points[-1]))[1] if own[-1][column] else None
        name = "\n".join([variant.name, *_endings(own)])
        labels.append((height_of_ended if height is None else float(height), name, colour))
    labels.sort()
    heights = _spread([height for height, _, _ in labels], [name.count("\n") + 1 for _, name, _ in labels])
    for height, (_, name, colour) in zip(heights, labels, strict=True):
        axes.annotate(name, (1.01, height), xycoords="axes fraction", color=colour, fontsize=9, va="center")


def _endings(rows: list[dict]) -> list[str]:
    """What is to be said of one variant's cells that did not end well: "out of memory at 2592x1952"."""
    sizes: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            sizes.setdefault(row["status"], []).append(row["size"])
    return [
        f"{status} at {', '.join(found) if len(found) < len(rows) else 'every size'}" for status, found in sizes.items()
    ]


def _spread(heights: list[float], num_lines: list[int]) -> list[float]:
    """Heights of labels of so many lines each, from the lowest, moved apart: up, and down again from the top."""
    gaps = [LINE_HEIGHT * (one + other) / 2 for one, other in pairwise(num_lines)]
    places = list(heights)
    for number, gap in enumerate(gaps):
        places[number + 1] = max(places[number + 1], places[number] + gap)
    places[-1] = min(places[-1], 1)
    for number, gap in reversed(list(enumerate(gaps))):
        places[number] = min(places[number], places[number + 1] - gap)
    return places


def _name_sizes(axes: Axes, rows: list[dict]) -> None:
    """Ticks of the horizontal axis at the sizes that were measured."""
    sizes = {row["megapixels"]: row["size"] for row in rows}
    axes.set_xlim(min(sizes) / 1.3, max(sizes) * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{sizes[value]}\n{value:.3g} MP"))


def _name_values(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=50))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _variant(row: dict) -> Variant:
    return Variant(row["network"], row["level"], row["layout"], row["precision"])


def _place(row: dict) -> tuple[str, ...]:
    """What cells have in common whose levels can be compared."""
    return row["network"], row["layout"], row["precision"], row["size"]


def _sizes(rows: list[dict]) -> list[str]:
    """From the smallest."""
    return list(dict.fromkeys(row["size"] for row in sorted(rows, key=lambda row: row["megapixels"])))


def _short(value: float) -> str:
    """Three digits that count."""
    return f"{float(f'{value:.3g}'):g}"
