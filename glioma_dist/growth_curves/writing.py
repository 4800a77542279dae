"""The files of a growth analysis: tables, JSON and plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from glioma_dist import __version__
from glioma_dist.config.file import to_dict
from glioma_dist.config.growth import GrowthConfig
from glioma_dist.config.paths import Url
from glioma_dist.csv_tables import csv_table
from glioma_dist.errors import InputError, printable
from glioma_dist.files import (
    check_new_folder,
    list_folder,
    make_folder,
    open_plain,
    remove_quietly,
    write_atomically,
    write_json_atomically,
)
from glioma_dist.growth_curves.plots import draw_together, draw_wells
from glioma_dist.growth_curves.result import GrowthResult

GROWTH, POINTS, JSON = "growth.csv", "points.csv", "growth.json"
MARK = b"culture,doubling_time_h,doubling_time_low_h,doubling_time_high_h,reason,"
"""growth.csv begins so. It is written first, and tells that the other files are ours, too."""
POINT_COLUMNS = (*("culture", "time_h", "confluence", "confluence_low", "confluence_high", "fields", "in_stretch"),)
DIGITS = 6
"""Of the numbers in tables."""
PLOT = re.compile(r"(?:together|wells(?:_\d+)?)\.(?:png|svg)")
"""Names of plots."""


def check_folder(folder: Path) -> None:
    """Raise InputError if the files cannot be written to `folder`, or would replace others."""
    check_new_folder("--out", folder)

    def read_start(name: str) -> bytes:
        with open_plain(folder / name) as file:
            return file.read(len(MARK))

    check_names(folder, list_folder("--out", folder), read_start)


def check_names(out: Path | Url, names: Iterable[str], read_start: Callable[[str], bytes]) -> None:
    """Raise InputError if files with the names of results exist that growth did not write; growth.csv shows it."""
    ours = sorted(name for name in names if name in (GROWTH, POINTS, JSON) or PLOT.fullmatch(name))
    if ours and (GROWTH not in ours or read_start(GROWTH) != MARK):
        raise InputError(
            f"--out {printable(out)}: holds {ours[0]}, which glioma-dist growth did not write and would replace; give "
            "another folder"
        )


def write_files(folder: Path, result: GrowthResult, config: GrowthConfig) -> list[str]:
    """Write all files, each complete or not at all, and remove plots of an earlier, larger result. Returns their
    names."""
    make_folder(folder)
    cultures = result.cultures
    rows = [culture.row() for culture in cultures]
    points = [
        {
            "culture": printable(culture.name),
            "time_h": point.time_h,
            "confluence": point.confluence,
            "confluence_low": point.low,
            "confluence_high": point.high,
            "fields": point.fields,
            "in_stretch": int(culture.in_stretch(point)),
        }
        for culture in cultures
        for point in culture.points
    ]
    content = {
        "made_by": f"glioma-dist growth {__version__}",
        "settings": to_dict(config),
        "cultures": [culture.to_json() for culture in cultures],
        "not_used": [{name: printable(text) for name, text in vars(each).items()} for each in result.not_used],
        "notes": list(result.notes),
    }
    write_atomically(folder / GROWTH, _csv(list(rows[0]), rows), by_several=True)
    write_atomically(folder / POINTS, _csv(POINT_COLUMNS, points), by_several=True)
    write_json_atomically(folder / JSON, content, by_several=True)
    names = [GROWTH, POINTS, JSON]
    bounds = (config.min_confluence, config.max_confluence)
    for name, data in (draw_together(cultures) | draw_wells(cultures, bounds)).items():
        write_atomically(folder / name, data, by_several=True)
        names.append(name)
    for name in old_plots((path.name for path in folder.iterdir()), names):
        remove_quietly(folder / name)
    return names


def old_plots(there: Iterable[str], written: Sequence[str]) -> list[str]:
    """Return the names of plots of an earlier, larger result, among those of the files that are there."""
    return sorted(name for name in there if PLOT.fullmatch(name) and name not in written)


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """A table. Numbers have `DIGITS` digits; what is unknown is empty."""
    return csv_table(columns, ({name: _short(value) for name, value in row.items()} for row in rows))


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
