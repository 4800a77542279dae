"""The table that a user gives with `--metadata`: the well and the time of each image, by path or by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from glioma_dist.errors import InputError, one_line
from glioma_dist.growth_curves.names import Told
from glioma_dist.growth_curves.table import Picture, Table, check_columns, read_table

TIME, WELL = "time_h", "well"
COLUMNS = ("image", "plane", WELL, "field", TIME)
NUM_NAMED = 3


class Metadata:
    """What a table tells of images. Raises InputError for a table that cannot be used."""

    def __init__(self, path: Path) -> None:
        table = read_table(path)
        check_columns(table, ("image",), f"give a table with the columns image, {WELL}, {TIME}")
        if not {WELL, TIME} & set(table.columns):
            raise InputError(f"{path}: has no column {WELL} and no column {TIME}; give one of them")
        self.path = path
        self.unused_columns = [name for name in table.columns if name and name not in COLUMNS]
        self._rows: dict[tuple[str, str], Told] = {}
        self._matched: Counter[tuple[str, str]] = Counter()
        self._depths: set[int] = set()
        for number, row in enumerate(table.rows, 2):
            self._add(table, number, row)
        self._names: dict[tuple[str, str], set[str]] = {}

    def _add(self, table: Table, number: int, row: dict[str, str]) -> None:
        where = f"{table.where}: row {number}"
        if not row["image"]:
            raise InputError(f"{where} names no image")
        key = _parts(row["image"])[0], row.get("plane", "")
        if key in self._rows:
            raise InputError(f"{where} names {one_line(row['image'], 150)} again; keep one of its rows")
        try:
            hours = table.number(row[TIME]) if row.get(TIME) else None
        except ValueError:
            raise InputError(
                f"{where} has the {TIME} {one_line(row[TIME], 60)}, which is not a number of hours"
            ) from None
        self._rows[key] = Told(row.get(WELL) or None, row.get("field") or None, hours, is_of_plane=bool(key[1]))
        self._depths.add(key[0].count("/"))

    def match(self, pictures: Sequence[Picture]) -> dict[str, tuple[str, str] | str]:
        """Return for each picture, by its name, the key of its row, or the reason why it has none.

        A row names a file by its whole path, by the end of its path, or by its name. The longest match counts. A row
        with a plane counts for that plane, one without for all planes that have no row of their own.
        """
        found: dict[str, tuple[str, str] | str] = {}
        for picture in pictures:
            keys = [
                (end, plane)
                for end in _parts(picture.image)
                if end.count("/") in self._depths
                for plane in dict.fromkeys((picture.plane, ""))
            ]
            key = next((each for each in keys if each in self._rows), None)
            found[picture.name] = key if key else f"--metadata has no row for {PurePosixPath(picture.image).name}"
            if key:
                self._names.setdefault(key, set()).add(picture.image)
        for name, key in found.items():
            if isinstance(key, tuple) and len(self._names[key]) > 1:
                found[name] = f"{len(self._names[key])} images are called {key[0]}: give their paths in --metadata"
        return found

    def told(self, key: tuple[str, str]) -> Told:
        """Return what a row says."""
        return self._rows[key]

    def describe_unmatched(self) -> str:
        """Say which rows belong to no picture; empty if all do."""
        names = [" ".join(filter(None, key)) for key in self._rows if key not in self._names]
        if not names:
            return ""
        shown = ", ".join(one_line(name, 60) for name in names[:NUM_NAMED])
        more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
        return (
            f"--metadata: {len(names)} of {len(self._rows)} rows name images that summary.csv does not have: "
            f"{shown}{more}"
        )


def _parts(image: str) -> list[str]:
    """A path and its ends, the longest first: a/b/c.tif, b/c.tif, c.tif."""
    parts = [part for part in image.replace("\\", "/").split("/") if part not in ("", ".")]
    return ["/".join(parts[first:]) for first in range(len(parts))] or [image]
