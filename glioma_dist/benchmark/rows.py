"""Rows of a benchmark in a JSON file, each written as soon as it is measured, so that a benchmark can be continued."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glioma_dist.errors import InputError, one_line
from glioma_dist.files import make_folder, read_json, write_json_atomically
from glioma_dist.training.folder_lock import folder_lock

MEASURED_AGAIN = ("failed", "skipped")
"""Status of rows that are measured again when the benchmark continues. Rows that ran out of memory or time are kept."""


@contextmanager
def results_folder(folder: Path) -> Generator[None]:
    """Context manager that makes the folder of a benchmark's results and holds it: another one would write its own rows
    over these, and take part of the machine from what is measured. Raises InputError where another holds it."""
    make_folder(folder)
    with folder_lock(folder, "benchmark"):
        yield


class Rows:
    """The rows of one benchmark, in a folder that `results_folder` holds.

    Args:
        file: the JSON.
        conditions: columns that all rows must share, such as the device and the commit.

    Raises InputError if the file holds something else, or rows that were measured under other conditions.
    """

    def __init__(self, file: Path, conditions: Mapping[str, Any]) -> None:
        self._file = file
        found = read_json(file) if file.exists() else []
        if not isinstance(found, list) or not all(isinstance(row, dict) and "status" in row for row in found):
            raise InputError(f"{file}: holds no rows of a benchmark; give another --out")
        for row, (name, value) in ((row, each) for row in found for each in conditions.items()):
            if row.get(name) != value:
                what, before, now = _difference(name, row.get(name), value)
                raise InputError(
                    f"--out {file.parent} holds a benchmark already, measured with {what} "
                    f"{one_line(before, 80)}, but now it is {one_line(now, 80)}; give another --out"
                )
        self._are_measured_here = not found
        self.rows = [row for row in found if row["status"] not in MEASURED_AGAIN]

    def report(self, write: Callable[[list[dict], Path], None]) -> None:
        """Have `write` write tables and plots of the rows that there are beside them.

        Call it before anything is measured too. Raises InputError where rows that were there cannot be used.
        """
        if not self.rows:
            return
        try:
            write(self.rows, self._file.parent)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if self._are_measured_here:
                raise
            told = one_line(f"{type(error).__name__}: {error}", 100)
            raise InputError(
                f"{self._file}: holds a row that no benchmark wrote ({told}); restore it, or give another --out"
            ) from error

    def find(self, wanted: Mapping[str, Any]) -> dict | None:
        """The row that has these values in these columns."""
        return next((row for row in self.rows if all(row.get(name) == each for name, each in wanted.items())), None)

    def get(self, wanted: Mapping[str, Any], measure: Callable[[], dict]) -> dict:
        """The row with these values; if there is none, `measure` makes it, and it is written at once."""
        row = self.find(wanted)
        if row is None:
            row = measure()
            self.rows.append(row)
            write_json_atomically(self._file, self.rows)
        return row


def _difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """What differs, and its two values: of tables, as of versions, the first entry, because a line has no room for
    both."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return name, before, now
    key = next(key for key in (*now, *before) if before.get(key) != now.get(key) or (key in before) != (key in now))
    return key, before.get(key), now.get(key)
