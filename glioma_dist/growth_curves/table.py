"""The table that predict writes, and tables of metadata: CSV of any origin, read with a bound."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from glioma_dist.config.paths import Url
from glioma_dist.csv_tables import plain_text
from glioma_dist.data.shards.storage import open_folder
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.files import cannot_read, read_bytes
from glioma_dist.limits import TABLE_DELIMITERS

SUMMARY = "summary.csv"
MAX_TABLE_BYTES = 2**26
"""Half a million images."""
MAX_HOURS = 1e6
"""A century; also the limit of every other number of a table."""


@dataclass(frozen=True)
class Picture:
    """A row of summary.csv: what is known of a picture. None, or empty, where the table does not tell."""

    image: str
    """The file, as the table names it."""
    plane: str
    """t003, t003-p002, c2, …; empty for a file with one picture."""
    confluence: float
    """From 0 to 1."""
    pixels: int | None = None
    """Width times height: the picture's weight in a mean."""
    time_h: float | None = None
    """Hours since the first picture of the file."""
    acquired: datetime | None = None
    """In UTC; a time without a zone is taken for UTC."""

    @property
    def name(self) -> str:
        """The file, and its plane where it has several."""
        return f"{self.image} {self.plane}".rstrip()


@dataclass(frozen=True, order=True)
class NotUsed:
    """A picture without a place in a growth curve, and why."""

    image: str
    plane: str
    reason: str


@dataclass(frozen=True)
class Table:
    """Rows by column name. where: the file, for messages."""

    where: str
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    has_decimal_comma: bool = False
    """Whether the columns are parted by something else than commas, as Excel does where numbers have one."""

    def number(self, text: str) -> float:
        """Return a number of at most `MAX_HOURS` in size. Raises ValueError for anything else."""
        value = float(text.replace(",", ".") if self.has_decimal_comma else text)
        if not abs(value) <= MAX_HOURS:
            raise ValueError(text)
        return value


def read_predictions(place: Path | Url) -> tuple[list[Picture], list[NotUsed]]:
    """Read the pictures of a prediction (a folder, a URL, or the table itself), and the rows that cannot be used.

    Raises InputError where there is no such table.
    """
    is_table = place.name.lower().endswith(".csv")
    if isinstance(place, Url):
        folder, name = (place.parent, place.name) if is_table else (place, SUMMARY)
        where, data = str(Url(folder) / name), open_folder(str(folder)).read_all(name, MAX_TABLE_BYTES)
    else:
        path = table_path(place)
        where, data = str(path), read_bytes(path, MAX_TABLE_BYTES)
    table = parse_table(data, where)
    check_columns(table, ("image", "confluence"), "it is no summary.csv of glioma-dist predict")
    pictures: list[Picture] = []
    not_used: list[NotUsed] = []
    for row in table.rows:
        try:
            pictures.append(_picture(table, row))
        except ValueError as error:
            not_used.append(NotUsed(row["image"], row.get("plane", ""), one_line(error, 120)))
    if not table.rows:
        raise InputError(f"{where}: has no row; segment images first: glioma-dist predict --help")
    return pictures, not_used


def table_path(place: Path) -> Path:
    """Return the path of a prediction's table: the file itself, or summary.csv of a folder. Raises InputError for
    neither."""
    try:
        is_folder, is_there = place.is_dir(), place.exists()
        is_inside = is_folder and (place / SUMMARY).exists()
    except OSError as error:
        raise cannot_read(place, error) from None
    if not is_there:
        raise InputError(f"{place}: no such file or folder; give the --out of glioma-dist predict")
    if not is_folder and not place.name.lower().endswith(".csv"):
        raise InputError(f"{place}: give the folder that glioma-dist predict wrote, or its {SUMMARY}")
    if is_folder and not is_inside:
        raise InputError(f"{place}: has no {SUMMARY}; give the --out of glioma-dist predict")
    return place / SUMMARY if is_folder else place


def _picture(table: Table, row: dict[str, str]) -> Picture:
    """Raises ValueError, whose text is a reason, for a row that cannot be used."""
    if not row["image"]:
        raise ValueError("the row names no image")
    confluence = _optional(table, row, "confluence")
    if confluence is None:
        raise ValueError("has no confluence")
    if not 0 <= confluence <= 1:
        raise ValueError(f"its confluence is {row['confluence']}, not between 0 and 1")
    sides = [_optional(table, row, name) for name in ("width", "height")]
    pixels = None if None in sides else int(math.prod(side for side in sides if side is not None))
    return Picture(
        row["image"],
        row.get("plane", ""),
        confluence,
        pixels if pixels and pixels > 0 else None,
        _optional(table, row, "time_h"),
        _date(row.get("acquired", "")),
    )


def _optional(table: Table, row: dict[str, str], name: str) -> float | None:
    text = row.get(name, "")
    if not text:
        return None
    try:
        return table.number(text)
    except ValueError:
        raise ValueError(f"its {name} is {text!r}, no number that can be used") from None


def _date(text: str) -> datetime | None:
    if not text:
        return None
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"its acquired is {text!r}, no date such as 2024-05-31T09:30") from None
    try:
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"its acquired is {text!r}, out of range") from None


def read_table(path: Path) -> Table:
    """Read a local CSV file. Raises InputError if it cannot be read."""
    return parse_table(read_bytes(path, MAX_TABLE_BYTES), str(path))


def parse_table(data: bytes, where: str) -> Table:
    """Parse a CSV with a head in UTF-8, with commas, semicolons or tabs. Raises InputError if it is none.

    Names of columns are read in lower case and without the space around them, and so are values.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is no UTF-8 text (byte {error.start}); save it as CSV UTF-8") from None
    head = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(TABLE_DELIMITERS, key=head.count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if line]
    except csv.Error as error:
        raise InputError(f"{where}: is no CSV ({one_line(error, 100)})") from None
    if not lines:
        raise InputError(f"{where}: is empty; a table with a head is needed")
    columns = tuple(name.strip().lower() for name in lines[0])
    repeated = next((name for number, name in enumerate(columns) if name and name in columns[:number]), None)
    if repeated:
        raise InputError(f"{where}: has two columns {one_line(repeated, 80)}; keep one")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if len(line) > len(columns) and any(cell.strip() for cell in line[len(columns) :]):
            raise InputError(
                f"{where}: row {number} has {len(line)} cells, its head {len(columns)}; is a value with a "
                f"{'comma' if delimiter == ',' else 'delimiter'} not in quotes?"
            )
        cells = [plain_text(cell.strip()) for cell in line] + [""] * (len(columns) - len(line))
        if any(cells):
            rows.append(dict(zip(columns, cells, strict=False)))
    return Table(where, columns, rows, delimiter != ",")


def check_columns(table: Table, needed: Sequence[str], otherwise: str) -> None:
    """Raise InputError if a column is missing."""
    for name in needed:
        if name not in table.columns:
            found = one_line(", ".join(map(printable, table.columns)), 150)
            raise InputError(f"{table.where}: has no column {name} (it has {found}): {otherwise}")
