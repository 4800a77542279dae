"""The report of a data set: one HTML file with its splits, what is in two of them, histograms, pictures and a table."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from glioma_dist.config.data_report import DataReportConfig
from glioma_dist.config.file import checked
from glioma_dist.data.near_duplicates import Sketch
from glioma_dist.data.shards.index import INDEX_NAME
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.urls import is_url
from glioma_dist.errors import InputError, printable
from glioma_dist.files import check_new_file, make_folder, write_atomically
from glioma_dist.report.data_findings import find_alike
from glioma_dist.report.data_pictures import draw_pictures
from glioma_dist.report.data_samples import FEW_CELLS, ReportedSample, Unreadable, examine, with_few_cells
from glioma_dist.report.data_sections import DataSet, sections
from glioma_dist.report.html_pages import render

MAX_QUALITY = 1000
"""Images, evenly spread, whose pictures are looked at for flags: 0.06 s each at LIVECell's size."""
SECONDS_BETWEEN_LINES = 10.0
USUAL_SPLITS = {"train": 0, "val": 1, "test": 2}
"""Their order on the page; splits of other names come after them."""


@dataclass(frozen=True)
class DataReport:
    """The report that was written."""

    path: Path
    num_splits: int
    num_images: int
    num_leaks: int
    """Pairs of images that are alike and in different splits."""
    num_shared_groups: int
    """Groups with images in several splits."""
    num_flagged: int
    """Images with a flag."""
    num_unreadable: int
    num_bytes: int
    """Of the file."""


def report_data(config: DataReportConfig) -> DataReport:
    """Write one HTML file about shards.

    Raises:
        InputError: a folder has no shards, no image can be read, or the file cannot be written.
        UnavailableError: a store did not answer.
    """
    config = checked(DataReportConfig, config)
    check_new_file("--out", config.out)
    readers = [ShardReader(folder) for folder in find_splits(config.shards)]
    samples, sketches, unreadable, num_looked = _examine_all(readers)
    alike = find_alike(samples, sketches)
    names = split_names(readers)
    data = DataSet(readers, names, samples, unreadable, alike, num_looked)
    pictures = draw_pictures(readers, samples, alike)
    page = render("data_page.html.jinja", **sections(data, pictures)).encode("utf-8", "backslashreplace")
    make_folder(config.out.parent)
    write_atomically(config.out, page, by_several=True)
    return DataReport(
        config.out,
        len(readers),
        len(samples),
        sum(pair.kind == "leak" for pair in alike.pairs),
        len(alike.shared_groups),
        sum(bool(sample.flags) for sample in samples),
        len(unreadable),
        len(page),
    )


def find_splits(given: Sequence[str | Path]) -> list[str | Path]:
    """Return the folders and URLs of shards; a folder that holds splits stands for all of them, train first."""
    found: list[str | Path] = []
    for each in given:
        splits = []
        if not is_url(str(each)) and os.path.isdir(each) and not os.path.exists(Path(each) / INDEX_NAME):
            folders = [path.parent for path in Path(each).glob(f"*/{INDEX_NAME}") if path.parent.name[0] != "."]
            splits = sorted(folders, key=lambda folder: (USUAL_SPLITS.get(folder.name, len(USUAL_SPLITS)), folder.name))
        found += splits or [each]
    return list(dict.fromkeys(found))


def split_names(readers: Sequence[ShardReader]) -> list[str]:
    """Return a short name for each split: that of the index, with the data set or the whole path if names are equal."""
    names = [printable(reader.index["split"])[:60] for reader in readers]
    for longer in (lambda reader: f"{reader.index['dataset']} {reader.index['split']}", lambda reader: reader.source):
        if len(set(names)) < len(names):
            names = [printable(longer(reader))[-120:] for reader in readers]
    return names


def _examine_all(
    readers: Sequence[ShardReader],
) -> tuple[list[ReportedSample], list[Sketch], list[Unreadable], int]:
    """All samples, in the order of the splits, what they are compared by, those that cannot be read, and how many were
    looked at for flags."""
    total = sum(map(len, readers))
    step = -(-total // MAX_QUALITY)
    wanted = [number % step == 0 for number in range(total)]
    samples, sketches, unreadable, told = [], [], [], time.monotonic()
    for number, found in enumerate(examine(readers, wanted), 1):
        if isinstance(found, Unreadable):
            unreadable.append(found)
        else:
            samples.append(found[0])
            sketches.append(found[1])
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            print(f"examining: {number} of {total} images", flush=True)
    if not samples:
        raise InputError(f"{readers[0].source}: no image can be read ({unreadable[0].reason})")
    return _with_few_cells(samples, len(readers)), sketches, unreadable, sum(wanted)


def _with_few_cells(samples: list[ReportedSample], num_splits: int) -> list[ReportedSample]:
    places = np.array([sample.at.split for sample in samples])
    for split in range(num_splits):
        own = np.flatnonzero(places == split).tolist()
        for place in with_few_cells([samples[each] for each in own]):
            sample = samples[own[place]]
            samples[own[place]] = replace(sample, flags=(*sample.flags, FEW_CELLS))
    return samples
