"""The report of a prediction: one HTML file with curves, pictures, a table, and what the network is."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

import glioma_dist
from glioma_dist.config import ReportConfig
from glioma_dist.config.file import checked
from glioma_dist.config.paths import Url
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.shards.store import Store
from glioma_dist.errors import printable
from glioma_dist.files import check_new_file, make_folder, write_atomically
from glioma_dist.inference.quality import FLAGS
from glioma_dist.report.html_pages import render
from glioma_dist.report.prediction_curves import Curve, CurvePoint, draw_curves, draw_histogram
from glioma_dist.report.prediction_growth import read_curves
from glioma_dist.report.prediction_model import describe_model
from glioma_dist.report.prediction_pictures import TOTAL_BYTES, Thumbnail, make_thumbnail, thumbnail_width
from glioma_dist.report.prediction_results import Failure, ReportedImage, ResultFolder
from glioma_dist.wording import short

MAX_CARDS = 2000
"""Pictures on a page; a browser shows more only slowly. The table has all images."""
MAX_POINTS = 5000
"""Rows of the table of points."""
MAX_CURVES = 384
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class PredictionReport:
    """The report that was written."""

    path: Path | Url
    num_images: int
    num_flagged: int
    """Images with a flag."""
    num_failed: int
    """Images without a result."""
    num_bytes: int
    """Of the file."""


@dataclass(frozen=True)
class _Row:
    """An image on the page. cells: its cells of the table, with their kinds."""

    number: int
    name: str
    confluence: str
    flags: tuple[str, ...]
    cells: list[tuple[str, str]]
    has_card: bool
    thumbnail: Thumbnail | None


def report_prediction(config: ReportConfig) -> PredictionReport:
    """Write one HTML file about the results of `predict`.

    The pictures come from the overlays, or, where there are none, from the images themselves. A picture that cannot be
    read is left blank.

    Raises:
        InputError: the folder has no summary.csv, a table cannot be read, or the file cannot be written.
        UnavailableError: a store did not answer.
    """
    config = checked(ReportConfig, config)
    if isinstance(config.out, Url):
        store = Store(config.out.parent)
        store.check()
    else:
        check_new_file("--out", config.out)
    folder = ResultFolder(config.predictions)
    images, failures = folder.images(), folder.failures()
    curves = read_curves(config.growth) if config.growth else _curves_of(images)
    page = render(
        "prediction_page.html.jinja",
        **_head(config, images, failures),
        **_growth(curves, images, config.growth is not None),
        **_flags(images, folder.has_flags),
        **_pictures(folder, images),
        **_failures(images, failures),
        **describe_model(folder.record(), config.checkpoint),
    ).encode("utf-8", "backslashreplace")
    if isinstance(config.out, Url):
        store.put(config.out.name, page)
    else:
        make_folder(config.out.parent)
        write_atomically(config.out, page, by_several=True)
    return PredictionReport(config.out, len(images), sum(bool(each.flags) for each in images), len(failures), len(page))


def _head(config: ReportConfig, images: Sequence[ReportedImage], failures: Sequence[Failure]) -> dict[str, Any]:
    values = [each.confluence for each in images]
    figures = [
        (str(len(images)), "images" if len(images) > 1 else "image"),
        (f"{100 * statistics.median(values):.1f} %", "median confluence"),
        (f"{100 * min(values):.1f} to {100 * max(values):.1f} %", "lowest to highest"),
        (str(sum(bool(each.flags) for each in images)), "with a flag"),
        (str(len(failures)), "failed"),
    ]
    name = printable(config.predictions.name or config.predictions)
    subtitle = f"Results of glioma-dist predict in {printable(config.predictions)}, shown by glioma-dist "
    return {"title": f"Prediction: {name}", "subtitle": subtitle + glioma_dist.__version__, "figures": figures}


def _curves_of(images: Sequence[ReportedImage]) -> list[Curve]:
    """A curve for each file whose pictures have several times: the planes of one time are joined by their mean."""
    names = _names(images)
    series: dict[str, dict[float, list[float]]] = {}
    for each in images:
        if each.hours is not None:
            series.setdefault(names[each.image], {}).setdefault(each.hours, []).append(each.confluence)
    return [
        Curve(name, tuple(CurvePoint(hours, statistics.fmean(values)) for hours, values in sorted(times.items())))
        for name, times in series.items()
        if len(times) > 1
    ]


def _growth(curves: list[Curve], images: Sequence[ReportedImage], is_given: bool) -> dict[str, Any]:
    """The section about confluence: curves where times are known, else how often it has which value."""
    if not curves:
        note = (
            "The results do not tell when the pictures were taken, so there is no curve. If the names of the files or "
            "a table tell it, run glioma-dist growth and give its folder with --growth."
        )
        svg = draw_histogram([each.confluence for each in images])
        return {"curves": [], "growth_note": note, "plots": [("", "", Markup(svg))], "points": []}
    note = (
        "Share of the pixels that belong to cells. It is an area, not a number of cells. All plots have the same axes."
    )
    if is_given and any(point.low is not None for curve in curves for point in curve.points):
        note += " Band: 95 % interval of the mean over the fields of a culture."
    if len(curves) > MAX_CURVES:
        note += f" The first {MAX_CURVES} of {len(curves)} cultures are shown."
    shown = curves[:MAX_CURVES]
    plots = [(curve.name, curve.remark, Markup(svg)) for curve, svg in zip(shown, draw_curves(shown), strict=True)]
    points = [_point_row(curve, point) for curve in shown for point in curve.points]
    return {"curves": shown, "growth_note": note, "plots": plots, "points": points[:MAX_POINTS]}


def _point_row(curve: Curve, point: CurvePoint) -> tuple[str, str, str, str]:
    known = point.low is not None and point.high is not None
    interval = f"{100 * point.low:.1f} to {100 * point.high:.1f}" if known else ""
    return curve.name, short(point.hours), f"{100 * point.confluence:.1f}", interval


def _flags(images: Sequence[ReportedImage], is_known: bool) -> dict[str, Any]:
    counts = Counter(flag for each in images for flag in each.flags)
    flags = [(name, count, FLAGS.get(name, "")) for name, count in counts.most_common()]
    note = "No picture has a flag." if is_known else "summary.csv has no column for flags, so nothing is known of them."
    if flags:
        note = (
            "A flag means that the mask of a picture deserves a look. It is a rule of thumb from the pixels, and says "
            "nothing about the cells."
        )
    return {"flags": flags, "flags_note": note}


def _pictures(folder: ResultFolder, images: Sequence[ReportedImage]) -> dict[str, Any]:
    """Pictures and table, row by row."""
    shown = _with_card(images)
    width, max_bytes = thumbnail_width(len(shown)), TOTAL_BYTES // len(shown)
    names = _names(images)
    columns = _columns(images)
    rows, told, num_pictures = [], time.monotonic(), 0
    with ImageReader() as reader:
        for number, each in enumerate(images, 1):
            has_card = number - 1 in shown
            thumbnail = make_thumbnail(folder, each, width, max_bytes, reader) if has_card else None
            num_pictures += thumbnail is not None
            name = each.named(names[each.image])
            cells = [(name, "text"), *((value(each), kind) for _, kind, value in columns)]
            confluence = f"{100 * each.confluence:.1f}"
            rows.append(_Row(number, name, confluence, each.flags, cells, has_card, thumbnail))
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                print(f"pictures: {number} of {len(images)}", flush=True)
    notes = ["Yellow: the outlines of what the network takes for cells."]
    if len(shown) < len(images):
        notes.append(f"{len(shown)} of {len(images)} images have a picture here: those with flags first.")
    if num_pictures < len(shown):
        notes.append(
            f"{len(shown) - num_pictures} of them cannot be shown: neither an overlay nor the image itself can be read."
        )
    heads = [("Image", "text"), *((name, kind) for name, kind, _ in columns)]
    return {"rows": rows, "columns": heads, "pictures_note": " ".join(notes)}


def _with_card(images: Sequence[ReportedImage]) -> set[int]:
    """Places of the images that get a picture: all, or as many as a page takes, those with flags first."""
    if len(images) <= MAX_CARDS:
        return set(range(len(images)))
    flagged = [place for place, each in enumerate(images) if each.flags][: MAX_CARDS // 2]
    others = [place for place in range(len(images)) if place not in set(flagged)]
    wanted = MAX_CARDS - len(flagged)
    return {*flagged, *(others[number * len(others) // wanted] for number in range(wanted))}


def _names(images: Sequence[ReportedImage]) -> dict[str, str]:
    """Path of each image -> its file, or, where several files have the same name, the path."""
    paths = {each.image: each.file_name for each in images}
    times = Counter(paths.values())
    return {path: name if times[name] == 1 else path for path, name in paths.items()}


def _columns(images: Sequence[ReportedImage]) -> list[tuple[str, str, Any]]:
    """Head, kind and text of each column after the name; those that no image has are omitted."""
    columns = [
        ("Time (h)", "number", lambda each: "" if each.hours is None else f"{each.hours:.6g}"),
        ("Confluence (%)", "number", lambda each: f"{100 * each.confluence:.2f}"),
        ("Area (µm²)", "number", lambda each: "" if each.area_um2 is None else f"{each.area_um2:.0f}"),
        ("Components", "number", lambda each: "" if each.components is None else str(each.components)),
        ("Flags", "flag", lambda each: ", ".join(each.flags)),
        ("Computed", "text", lambda each: each.way),
    ]
    return [column for column in columns if column[0] == "Flags" or any(column[2](each) for each in images)]


def _failures(images: Sequence[ReportedImage], failures: Sequence[Failure]) -> dict[str, Any]:
    total = len(images) + len(failures)
    return {"failures": failures, "failures_note": f"{len(failures)} of {total} images have no result:"}
