"""The resolution benchmark's table and plots, made from the rows that glioma-dist bench resolution wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import offset_copy

from glioma_dist.csv_tables import csv_table
from glioma_dist.files import write_atomically
from glioma_dist.report.style import (
    BLUE,
    DARK_BLUE,
    GREY,
    LIGHT_BLUE,
    ORANGE,
    VIOLET,
    entitle,
    tidy,
    write_plots,
)
from glioma_dist.wording import short

OURS = "glioma-dist"
CARDS_GB = (8, 16, 24, 48, 80)
"""Memory of the GPUs that plots show."""
COLOURS = {
    (OURS, "none"): LIGHT_BLUE,
    (OURS, "selective"): BLUE,
    (OURS, "full"): DARK_BLUE,
    ("segmentation_models.pytorch", "none"): ORANGE,
    ("transformers eager", "none"): VIOLET,
}
OUT_OF_MEMORY = "out of memory"
SIDE_BY_SIDE_POINTS = 9
"""Between the crosses of variants that failed at the same size."""


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
    """Write resolution.csv, resolution.md, memory.png and speed.png into `folder`. A plot needs values at two sizes at
    least; with fewer it is not written, and one of an earlier report is removed.

    rows: as in resolution.json; those of kind "step" are cells, those of kind "largest" what the search found.
    """
    write_atomically(folder / "resolution.csv", csv_text(rows))
    write_atomically(folder / "resolution.md", markdown_text(rows))
    steps = [row for row in rows if row["kind"] == "step"]
    write_plots(folder, {"memory.png": draw_memory(steps), "speed.png": draw_speed(steps)})


def csv_text(rows: list[dict]) -> str:
    """All rows and columns; lists and tables in a cell are joined with spaces."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    flat = ({name: _flat(value) for name, value in row.items()} for row in rows)
    return csv_table(names, flat, line_end="\n")


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
        f"# U-Net {first['encoder']}: time and memory of a training step, by image size\n",
        f"Batch {first['batch_size']}, {first['device']}; {versions}; commit {first['commit']}.\n",
        f"```\n{first['command']}\n```\n",
        _table("Peak memory, GiB", steps, lambda row: f"{row['peak_gib']:.2f}" if row["peak_gib"] else "–"),
        _table("Images per second", steps, lambda row: short(row["images_per_second"])),
    ]
    if any(row["images_per_second_with_data"] for row in steps):
        title = f"Images per second with data loading ({first['data']}, {first['workers']} workers)"
        parts.append(_table(title, steps, lambda row: short(row["images_per_second_with_data"])))
    if any(row.get("waiting_share") is not None for row in steps):
        title = "Time spent waiting for data, %"
        parts.append(_table(title, steps, lambda row: _percent(row.get("waiting_share"))))
    if any("tflop" in row for row in steps):
        parts.append(_utilisation(steps))
    plain = {_place(row): row["median_seconds"] for row in steps if row["level"] == "none" and row["status"] == "ok"}
    compared = [row for row in steps if row["network"] == OURS and row["level"] != "none" and _place(row) in plain]
    if compared:
        title = "Time of a step, relative to the level none"
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
    return "–" if share is None else short(100 * share)


def _largest_table(rows: list[dict]) -> str:
    lines = ["## The largest that trains, to 5 %\n", "| | | sought | found | limited by |", "|---|---|---|---|---|"]
    for row in rows:
        variant = _variant(row)
        found = f"{row['size']}, batch {row['batch_size']}" if row["status"] == "ok" else "none"
        lines.append(f"| {variant.name} | {variant.precision} | {row['sought']} | {found} | {row['limited_by']} |")
    return "\n".join(lines) + "\n"


def draw_memory(rows: list[dict]) -> Figure | None:
    """Peak memory against the image's size, with the memory of common GPUs; None for fewer than two sizes."""
    caption = "Both axes are logarithmic. Dotted: memory of common GPUs."
    return _draw(rows, "peak_gib", "Peak memory of a training step, GiB", caption, CARDS_GB, height_of_failed=0.97)


def draw_speed(rows: list[dict]) -> Figure | None:
    """Images per second against the image's size, batches at hand; None for fewer than two sizes."""
    numbers = sorted({len(row["seconds"]) for row in rows if row["status"] == "ok"})
    caption = (
        f"Both axes are logarithmic. Median of {' or '.join(map(str, numbers))} timed steps, without data loading."
    )
    return _draw(rows, "images_per_second", "Images trained per second", caption, (), height_of_failed=0.03)


def _draw(
    rows: list[dict], column: str, title: str, caption: str, gpus: tuple[int, ...], height_of_failed: float
) -> Figure | None:
    """A panel for each precision, both axes logarithmic; a line for each variant, those of baselines dashed."""
    if len({row["size"] for row in rows if row[column]}) < 2:
        return None
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    figure = Figure(figsize=(3.2 + 5.8 * len(precisions), 4.8), layout="constrained")
    values = [row[column] for row in rows if row[column]]
    low, high = min(values) / 1.3, max(values) * 1.3
    for axes, precision in zip(figure.subplots(1, len(precisions), squeeze=False)[0], precisions, strict=True):
        axes.set(xscale="log", yscale="log", ylim=(low, high))
        axes.set_title(precision, loc="left", color=GREY, fontsize=10)
        _name_sizes(axes, rows)
        _name_values(axes)
        for gpu in gpus:
            if low < gpu < high:
                axes.axhline(gpu, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
                place = {"xy": (0.01, gpu), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
                axes.annotate(f"{gpu} GB GPU", xytext=(0, 2), color=GREY, fontsize=8, **place)
        own = [row for row in rows if row["precision"] == precision]
        _draw_lines(axes, own, column)
        _draw_failed(axes, own, height_of_failed)
    figure.legend(handles=_legend(rows, column), loc="outside right upper", frameon=False, fontsize=8)
    first = rows[0]
    entitle(figure, f"{title}: U-Net {first['encoder']}, batch {first['batch_size']}, {first['device']}", caption)
    return figure


def _style(variant: Variant) -> dict[str, str]:
    colour = COLOURS.get((variant.network, variant.level), GREY)
    return {
        "color": colour,
        "linestyle": "-" if variant.network == OURS else "--",
        "marker": "o",
        "markerfacecolor": colour if variant.layout == "contiguous" else "white",
    }


def _draw_lines(axes: Axes, rows: list[dict], column: str) -> None:
    for variant in dict.fromkeys(map(_variant, rows)):
        own = sorted((row for row in rows if _variant(row) == variant), key=lambda row: row["megapixels"])
        points = [(row["megapixels"], row[column]) for row in own if row[column]]
        if points:
            axes.plot(*zip(*points, strict=True), **_style(variant))


def _draw_failed(axes: Axes, rows: list[dict], height: float) -> None:
    """A cross for each cell without a value, above or below its size: at `height`, a share of the axes' height."""
    for size in {row["size"] for row in rows}:
        failed = [row for row in rows if row["size"] == size and row["status"] != "ok"]
        for number, row in enumerate(failed):
            aside = (number - (len(failed) - 1) / 2) * SIDE_BY_SIDE_POINTS
            place = offset_copy(axes.get_xaxis_transform(), axes.figure, x=aside, units="points")
            colour, marker = _style(_variant(row))["color"], _marker(row["status"])
            axes.scatter([row["megapixels"]], [height], marker=marker, color=colour, transform=place, clip_on=False)


def _marker(status: str) -> str:
    return "x" if status == OUT_OF_MEMORY else "+"


def _legend(rows: list[dict], column: str) -> list[Line2D]:
    """A handle for each variant, in the order of their values at the smallest size, and for each way to fail."""
    smallest = min(rows, key=lambda row: row["megapixels"])["size"]
    ordered = sorted(rows, key=lambda row: -(row[column] or 0) if row["size"] == smallest else 0)
    handles = {_variant(row).name: Line2D([], [], **_style(_variant(row))) for row in ordered}
    failed = {row["status"]: row for row in rows if row["status"] != "ok"}
    for status in failed:
        handles[f"{status} at this size, no value"] = Line2D(
            [], [], color=GREY, marker=_marker(status), linestyle="none"
        )
    for name, handle in handles.items():
        handle.set_label(name)
    return list(handles.values())


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
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    tidy(axes)


def _variant(row: dict) -> Variant:
    return Variant(row["network"], row["level"], row["layout"], row["precision"])


def _place(row: dict) -> tuple[str, ...]:
    """What cells have in common whose levels can be compared."""
    return row["network"], row["layout"], row["precision"], row["size"]


def _sizes(rows: list[dict]) -> list[str]:
    """From the smallest."""
    return list(dict.fromkeys(row["size"] for row in sorted(rows, key=lambda row: row["megapixels"])))
