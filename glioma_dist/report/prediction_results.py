"""What a prediction left in its folder: the rows of summary.csv and failed.csv, and the settings."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from glioma_dist.config.paths import Url
from glioma_dist.csv_tables import plain_text
from glioma_dist.data.shards.store import Store
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.files import cannot_read, parse_json, read_bytes
from glioma_dist.limits import TABLE_DELIMITERS

SUMMARY, FAILED, RECORD = "summary.csv", "failed.csv", "predict.json"
MAX_TABLE_BYTES = 2**28
MAX_PICTURE_BYTES = 2**30
MAX_RECORD_BYTES = 2**30
MAX_HOURS = 1e7
"""A thousand years: a table that tells more tells no time."""
TOLD = frozenset(
    ("image", "plane", "time_h", "acquired", "pixel_size_um", "width", "height", "confluence", "area_um2")
) | {"components", "flags", "way", "cells"}
"""Columns of summary.csv that are no names of files."""
TOLD_OF_CLASSES = "confluence of "
"""Begins the names of more of them, one for each class of cells."""


@dataclass(frozen=True)
class ReportedImage:
    """A row of summary.csv. What the table does not tell is None, or an empty text."""

    image: str
    """Path of the image, as predict was given it."""
    confluence: float
    """Share of the pixels that belong to cells, from 0 to 1."""
    plane: str = ""
    hours: float | None = None
    area_um2: float | None = None
    components: int | None = None
    flags: tuple[str, ...] = ()
    way: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """Kind of result -> the name of its file in the folder."""

    @property
    def file_name(self) -> str:
        """The image's file, without its folders."""
        return PurePosixPath(self.image).name or self.image

    def named(self, file: str) -> str:
        """Return `file`, with the plane if the file has several."""
        return f"{file} ({self.plane})" if self.plane else file


@dataclass(frozen=True)
class Failure:
    """A row of failed.csv."""

    image: str
    step: str
    reason: str


class ResultFolder:
    """The files of a prediction, in a folder or at a URL."""

    def __init__(self, place: Path | Url) -> None:
        self.place = place
        self.has_flags = False
        """Whether summary.csv has a column for flags; known once `images` has read it."""
        self._store = Store(place) if isinstance(place, Url) else None

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read a file's bytes. Raises InputError if it cannot be read."""
        if self._store is not None:
            return self._store.read_all(name, max_bytes)
        return read_bytes(Path(self.place) / name, max_bytes)

    def has(self, name: str) -> bool:
        """Return whether there is such a file. Raises InputError if this user may not look."""
        if self._store is not None:
            return name in self._names
        try:
            (Path(self.place) / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise cannot_read(Path(self.place) / name, error) from None
        return True

    def _is_folder(self) -> bool:
        try:
            return Path(self.place).is_dir()
        except OSError as error:
            raise cannot_read(printable(self.place), error) from None

    @cached_property
    def _names(self) -> set[str]:
        """Of all that lies at the URL; listed once."""
        return set(self._store.entries()) if self._store is not None else set()

    def images(self) -> list[ReportedImage]:
        """Read the rows of summary.csv. Raises InputError if it is missing or is not such a table."""
        where = f"{self.place}/{SUMMARY}"
        if self._store is None and not self._is_folder():
            raise InputError(f"{printable(self.place)}: no such folder; give the folder that predict wrote")
        if not self.has(SUMMARY):
            raise InputError(f"{where}: is missing; give the folder that glioma-dist predict wrote, after it has ended")
        columns, rows, has_decimal_comma = read_table(self.read(SUMMARY, MAX_TABLE_BYTES), where)
        for name in ("image", "confluence"):
            if name not in columns:
                raise InputError(f"{where}: has no column {name}; it is no summary.csv of glioma-dist predict")
        self.has_flags = "flags" in columns
        if not rows:
            raise InputError(f"{where}: has no row; nothing to report")
        return [_image(row, f"{where} row {number}", has_decimal_comma) for number, row in enumerate(rows, 2)]

    def failures(self) -> list[Failure]:
        """Read the rows of failed.csv; none if there is no such file."""
        if not self.has(FAILED):
            return []
        _, rows, _ = read_table(self.read(FAILED, MAX_TABLE_BYTES), f"{self.place}/{FAILED}")
        return [Failure(*(printable(row.get(name, "")) for name in ("image", "step", "reason"))) for row in rows]

    def record(self) -> dict[str, Any]:
        """Read predict.json; empty if there is no such file, or if it is no JSON object."""
        if not self.has(RECORD):
            return {}
        content = parse_json(self.read(RECORD, MAX_RECORD_BYTES), f"{self.place}/{RECORD}")
        return content if isinstance(content, dict) else {}


def read_table(data: bytes, where: str) -> tuple[list[str], list[dict[str, str]], bool]:
    """Read the column names and rows of a CSV file with a head, and whether its numbers may have a decimal comma: if
    Excel has saved it, semicolons can separate the columns. Raises InputError if it is none."""
    text = data.decode("utf-8-sig", "backslashreplace")
    delimiter = max(TABLE_DELIMITERS, key=text.lstrip("\r\n").partition("\n")[0].count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [list(map(plain_text, line)) for line in reader if any(map(str.strip, line))]
    except csv.Error as error:
        raise InputError(f"{where}: is no table that can be read ({one_line(error, 200)})") from None
    if not lines:
        return [], [], False
    columns = [name.strip().lower() for name in lines[0]]
    return columns, [dict(zip(columns, line, strict=False)) for line in lines[1:]], delimiter != ","


def number(text: str | None, has_decimal_comma: bool = False) -> float | None:
    """Return a finite number; None for anything else."""
    try:
        value = float((text or "").replace(",", "." if has_decimal_comma else ","))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _image(row: Mapping[str, str], where: str, has_decimal_comma: bool) -> ReportedImage:
    confluence, hours, area, components = (
        number(row.get(name), has_decimal_comma) for name in ("confluence", "time_h", "area_um2", "components")
    )
    if confluence is None or not 0 <= confluence <= 1:
        text = one_line(row.get("confluence", ""), 60)
        raise InputError(f"{where}: its confluence is {text!r}, not a number from 0 to 1; run predict again")
    files = {
        kind: name
        for kind, name in row.items()
        if kind not in TOLD
        and not kind.startswith(TOLD_OF_CLASSES)
        and name
        and PurePosixPath(name).name == name
        and "\0" not in name
    }
    return ReportedImage(
        printable(row.get("image", "")),
        confluence,
        printable(row.get("plane", "")),
        hours if hours is not None and abs(hours) <= MAX_HOURS else None,
        area,
        None if components is None else int(components),
        tuple(printable(flag) for flag in row.get("flags", "").split(";") if flag),
        printable(row.get("way", "")),
        files,
    )
