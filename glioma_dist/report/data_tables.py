"""The splits of a data report: what is in each, as a table and as histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.report.data_findings import Alike, Pair
from glioma_dist.report.data_samples import ReportedSample, Unreadable
from glioma_dist.report.prediction_curves import count_in_bins, draw_counts
from glioma_dist.wording import short


@dataclass(frozen=True)
class DataSet:
    """All that a page tells of. names: of the splits. num_looked: images looked at for flags of their pictures."""

    readers: Sequence[ShardReader]
    names: Sequence[str]
    samples: Sequence[ReportedSample]
    unreadable: Sequence[Unreadable]
    alike: Alike
    num_looked: int

    def of_split(self, split: int) -> list[ReportedSample]:
        return [sample for sample in self.samples if sample.at.split == split]

    def named(self, place: int) -> str:
        """An image, with its split."""
        sample = self.samples[place]
        return f"{self.names[sample.at.split]}: {sample.file_name or sample.key}"

    @property
    def leaks(self) -> list[Pair]:
        return [pair for pair in self.alike.pairs if pair.kind == "leak"]


def split_table(data: DataSet) -> dict[str, Any]:
    """Return the columns and rows of the table of splits."""
    columns = ["Split", "Images", "Shards", "Disk (MB)", "Groups", "Size", "Pixels", "Pixel size (µm)"]
    columns += ["Median confluence (%)", "Median cells", "Ignored pixels (%)"]
    rows = []
    for split, reader in enumerate(data.readers):
        own = data.of_split(split)
        groups = {(sample.dataset, sample.group) for sample in own if sample.group}
        cells = [sample.num_cells for sample in own if sample.num_cells is not None]
        sizes = Counter(f"{sample.width}x{sample.height}" for sample in own)
        pixels = Counter(short(sample.pixel_size_um) if sample.pixel_size_um else "not known" for sample in own)
        shards = reader.index["shards"]
        rows.append(
            [
                data.names[split],
                str(len(own)),
                str(len(shards)),
                f"{sum(shard['bytes'] for shard in shards) / 1e6:.1f}",
                str(len(groups)),
                _some(sizes),
                _some(Counter(sample.kind for sample in own)),
                _some(pixels),
                f"{100 * np.median([sample.confluence for sample in own]):.1f}" if own else "",
                f"{np.median(cells):.0f}" if cells else "",
                f"{100 * (1 - np.mean([sample.labelled for sample in own])):.1f}" if own else "",
            ]
        )
    return {"split_columns": columns, "splits": rows, "number_columns": (1, 2, 3, 4, 8, 9, 10)}


def _some(counts: Counter[str], most: int = 3) -> str:
    names = [name if len(counts) == 1 else f"{name} ({count})" for name, count in counts.most_common(most)]
    return ", ".join(names) + (f" and {len(counts) - most} more" if len(counts) > most else "")


def histograms(data: DataSet) -> list[tuple[str, str, list[tuple[str, str, Markup]]]]:
    """Return name, note, and a plot for each split, all with the same axes."""
    cells = [float(sample.num_cells) for sample in data.samples if sample.num_cells is not None]
    most = _rounded(max(cells, default=1.0))
    wanted = [
        ("Confluence", "Share of the pixels that belong to cells, without ignored pixels.", "confluence (%)", " %",
         100.0, lambda sample: 100 * sample.confluence),
        ("Cells in an image", "As the converter counted them.", "cells", "", most, lambda sample: sample.num_cells),
        ("Brightness", "Mean pixel value; 100 % is the highest possible: 255 with 8 bits.", "mean (%)", " %", 100.0,
         lambda sample: 100 * sample.mean),
        ("Contrast", "Difference between the 99.5th and the 0.5th percentile of the pixel values, in the same unit.",
         "contrast (%)", " %", 100.0, lambda sample: 100 * sample.contrast),
    ]  # fmt: skip
    return [
        (name, note, plots)
        for name, note, axis, unit, largest, value in wanted
        if (plots := _plots(data, axis, unit, largest, value))
    ]


def _plots(
    data: DataSet, axis: str, unit: str, largest: float, value: Callable[[ReportedSample], float | None]
) -> list[tuple[str, str, Markup]]:
    known = [
        [each for sample in data.of_split(split) if (each := value(sample)) is not None]
        for split in range(len(data.readers))
    ]
    top = max((max(count_in_bins(values, largest)) for values in known if values), default=0)
    plots = []
    for name, values in zip(data.names, known, strict=True):
        if values:
            remark = (
                f"{short(min(values))} to {short(max(values))}{unit}, median {short(float(np.median(values)))}{unit}"
            )
            label = f"Histogram: {axis} of {len(values)} images of {name}: {remark}"
            plots.append((name, remark, Markup(draw_counts(values, largest, axis, unit, label, top))))
    return plots


def _rounded(value: float) -> float:
    """The end of an axis: the next multiple of 20 below 100, of 200 from there on, and so on."""
    step = 2 * 10 ** max(1.0, np.floor(np.log10(max(value, 1.0))) - 1)
    return float(max(1.0, np.ceil(value / step)) * step)
