"""The scaling benchmark's tables and plots, made from scaling.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from glioma_dist.files import write_atomically
from glioma_dist.report.resolution import csv_text
from glioma_dist.report.style import BLUE, GREEN, GREY, ORANGE, entitle, tidy, write_plots
from glioma_dist.wording import short

NAMES = {"single": "one GPU", "ddp": "DDP", "fsdp2": "FSDP2", "spatial": "spatial parallel"}
COLOURS = {"ddp": BLUE, "fsdp2": ORANGE, "spatial": GREEN}


def write_report(rows: list[dict], folder: Path) -> None:
    """Write scaling.csv, scaling.md, scaling_speed.png and scaling_memory.png into `folder`. A plot needs values at two
    numbers of GPUs at least; with fewer it is not written, and one of an earlier report is removed."""
    write_atomically(folder / "scaling.csv", csv_text(rows))
    write_atomically(folder / "scaling.md", markdown_text(rows))
    speed = draw(rows, "Images per second", lambda row: row["images_per_second"], ideal=True)
    memory = draw(rows, "Peak memory of the fullest GPU, GiB", peak, ideal=False)
    write_plots(folder, {"scaling_speed.png": speed, "scaling_memory.png": memory})


def markdown_text(rows: Sequence[Mapping]) -> str:
    """A table for each image size: a line for each engine and number of GPUs."""
    first = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    parts = [
        f"# U-Net {first['encoder']}: speed and memory by the number of GPUs\n",
        f"{first['device']}; {versions}; commit {first['commit']}. Activation checkpointing {first['level']}, "
        f"{first['precision']}, {first['workers']} workers for each GPU, data: {first['data']}. DDP and FSDP2: each "
        "GPU has its own images. Spatial parallel: all GPUs share each image.\n",
        f"```\n{first['command']}\n```\n",
    ]
    if not any(row["mfu"] is not None for row in rows):
        parts.append("No model FLOPs utilisation (MFU): the peak speed of this device and precision is not known.\n")
    heads = ("", "GPUs", "images/s", "times one GPU", "waiting for data, %", "peak GiB of each GPU", "MFU, %")
    for size in dict.fromkeys(row["size"] for row in sorted(rows, key=lambda row: row["megapixels"])):
        own = [row for row in rows if row["size"] == size]
        lines = [f"## {size}\n", f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|---:|---:|"]
        lines += [_line(row, own) for row in own]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(row: Mapping, own: Sequence[Mapping]) -> str:
    place = f"| {NAMES[row['engine']]} | {row['num_gpus']} |"
    if row["status"] != "ok":
        reason = f" ({row['error']})" if row["status"] == "skipped" else ""
        return f"{place} {row['status']}{reason} | | | | |"
    single = next((each for each in own if each["engine"] == "single" and each["status"] == "ok"), None)
    gain = "–" if single is None else short(row["images_per_second"] / single["images_per_second"])
    peaks = ", ".join("–" if each is None else f"{each:.2f}" for each in row["peak_gib"])
    mfu = "–" if row["mfu"] is None else short(100 * row["mfu"])
    rate, waiting = short(row["images_per_second"]), short(100 * row["waiting_share"])
    return f"{place} {rate} | {gain} | {waiting} | {peaks} | {mfu} |"


def peak(row: Mapping) -> float | None:
    """GiB of the fullest GPU; None where it was not measured."""
    found = [each for each in row["peak_gib"] or () if each is not None]
    return max(found, default=None)


def draw(rows: Sequence[Mapping], title: str, value: Callable[[Mapping], float | None], ideal: bool) -> Figure | None:
    """A panel for each image size, a line for each engine over the number of GPUs. ideal: with a line of the speed of
    one GPU times their number. None where fewer than two numbers of GPUs were measured."""
    if len({row["num_gpus"] for row in rows if row["status"] == "ok" and value(row) is not None}) < 2:
        return None
    sizes = list(dict.fromkeys(row["size"] for row in sorted(rows, key=lambda row: row["megapixels"])))
    figure = Figure(figsize=(1 + 4.5 * len(sizes), 4.5), layout="constrained")
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        own = [row for row in rows if row["size"] == size and row["status"] == "ok"]
        numbers = sorted({row["num_gpus"] for row in rows if row["size"] == size})
        axes.set_title(size, loc="left", color=GREY, fontsize=10)
        axes.set_xlabel("GPUs")
        axes.set_xticks(numbers)
        points = {name: [(row["num_gpus"], value(row)) for row in own if row["engine"] == name] for name in NAMES}
        points = {name: [each for each in found if each[1] is not None] for name, found in points.items()}
        single = points["single"]
        for engine, colour in COLOURS.items():
            if points[engine]:
                line = sorted(single + points[engine])
                axes.plot(*zip(*line, strict=True), color=colour, marker="o", label=NAMES[engine])
        if single:
            axes.plot(*single[0], color=GREY, marker="o", linestyle="none", label=NAMES["single"])
            if ideal:
                axes.plot(numbers, [single[0][1] * each for each in numbers], color=GREY, linestyle=":", label="ideal")
        axes.set_ylim(bottom=0)
        tidy(axes)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    first = rows[0]
    caption = "Dotted: the speed of one GPU times their number." if ideal else "One dot: one launch."
    entitle(figure, f"{title}: U-Net {first['encoder']}, {first['device']}", caption)
    return figure
