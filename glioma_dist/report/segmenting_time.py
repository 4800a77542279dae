"""The prediction benchmark's table and plots, made from the rows that glioma-dist bench predict wrote."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from glioma_dist.files import write_atomically
from glioma_dist.report.style import BLUE, GREY, ORANGE, entitle, tidy, write_plots
from glioma_dist.wording import counted, short

OURS = "glioma-dist"
COLUMNS = {
    "Seconds": "median_seconds",
    "CPU seconds": "cpu_seconds",
    "Peak memory (GiB)": "peak_gib",
    "At the start (GiB)": "start_gib",
    "Added (GiB)": "grown_gib",
    "Tensors (GiB)": "tensors_gib",
}
PLOTTED = {"peak_gib": "Peak memory, GiB", "cpu_seconds": "CPU seconds an image"}


def write_report(rows: list[dict], folder: Path) -> None:
    """Write prediction.md, and prediction_<encoder>.png for each encoder with values at two sizes or more.

    rows: as in prediction.json.
    """
    write_atomically(folder / "prediction.md", markdown_text(rows))
    encoders = dict.fromkeys(row["encoder"] for row in rows)
    write_plots(folder, {f"prediction_{name.replace('/', '_')}.png": draw(rows, name) for name in encoders})


def markdown_text(rows: list[dict]) -> str:
    """A table with a line for each network at each size; ratios to the baseline of the same encoder and size."""
    first = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    lines = [
        "# Time and memory of segmenting one image, by image size\n",
        f"{first['device']}; {versions}; commit {first['commit']}. Median of "
        f"{counted(first['repeats'], 'image')} after {first['warm_up']} for warm-up; fp32, drawn image, random "
        "weights.\n",
        f"```\n{first['command']}\n```\n",
        "Peak memory is all memory of the process, libraries included. At the start: with all libraries and no "
        "network. Added: the difference. Tensors: the peak memory of all tensors, weights included. In brackets: the "
        "value divided by the baseline's.\n",
        f"| Size | Encoder | Network | {' | '.join(COLUMNS)} |",
        "|---|---|---|" + "---:|" * len(COLUMNS),
    ]
    for row in sorted(rows, key=lambda row: (row["megapixels"], row["encoder"])):
        cells = [_cell(row, column, _baseline(rows, row)) for column in COLUMNS.values()]
        if row["status"] != "ok":
            cells = [row["status"], *["–"] * (len(COLUMNS) - 1)]
        lines.append(f"| {row['size']} | {row['encoder']} | {row['network']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _baseline(rows: list[dict], row: dict) -> dict | None:
    """The row to compare one of ours with."""
    place = (row["encoder"], row["size"])
    others = (
        other
        for other in rows
        if (other["encoder"], other["size"]) == place and other["network"] != OURS and other["status"] == "ok"
    )
    return next(others, None) if row["network"] == OURS else None


def _cell(row: dict, column: str, baseline: dict | None) -> str:
    value = row[column]
    if value is None:
        return "–"
    other = baseline and baseline[column]
    return short(value) if not other or column == "start_gib" else f"{short(value)} ({value / other:.2f})"


def draw(rows: list[dict], encoder: str) -> Figure | None:
    """Peak memory and CPU seconds against the image's size; None for fewer than two sizes."""
    own = [row for row in rows if row["encoder"] == encoder and row["status"] == "ok"]
    if len({row["size"] for row in own}) < 2 or any(row[column] is None for row in own for column in PLOTTED):
        return None
    figure = Figure(figsize=(9, 4), layout="constrained")
    sizes = {row["megapixels"]: row["size"] for row in own}
    for axes, (column, title) in zip(figure.subplots(1, 2), PLOTTED.items(), strict=True):
        for network in dict.fromkeys(row["network"] for row in own):
            points = sorted((row["megapixels"], row[column]) for row in own if row["network"] == network)
            axes.plot(*zip(*points, strict=True), marker="o", label=network, color=BLUE if network == OURS else ORANGE)
        axes.set(xscale="log", yscale="log")
        axes.set_title(title, loc="left", color=GREY, fontsize=10)
        axes.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: sizes.get(value, "")))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=50))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    entitle(figure, f"Segmenting one image: U-Net {encoder}, {own[0]['device']}", "All axes are logarithmic.")
    return figure
