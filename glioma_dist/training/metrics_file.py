"""metrics.jsonl: the rows of a run, for programs, and for the run itself when it resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from glioma_dist.errors import InputError, one_line
from glioma_dist.files import cannot_write, read_bytes, write_atomically
from glioma_dist.model.checkpoint import MAX_STEP

MAX_METRICS_BYTES = 2**30
MAX_ROW_BYTES = 2**18
"""Of a line: the names of 254 classes, of 60 characters each, take up to 12 bytes a character in JSON."""
DICE_BY_CLASS = "dice_by_class"
"""Of a row of a validation, where there are several classes: Dice by the name of the class."""


class MetricsFile:
    """<out>/metrics.jsonl: one JSON object a line, written at once."""

    def __init__(
        self,
        path: Path,
        resume_step: int,
        check: Callable[[], None] = lambda: None,
        added: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Rows after `resume_step`, and a last line that a kill cut short, are removed from an old file.

        added: rows that the run before could not write. check: called before each write; it raises InputError where
        the run may not write any more. Raises InputError where the file holds anything but rows, or cannot be written.
        """
        self._path, self._check = path, check
        rows = [row for _, row in read_rows(path)] if path.exists() else []
        rows += [row for row in added if row not in rows]
        self.kept = [row for row in rows if row["step"] <= resume_step]
        """Rows of earlier starts."""
        check()
        write_atomically(path, b"".join(map(_as_line, self.kept)))
        self.unwritten: list[dict[str, Any]] = []
        """Rows that could not be written so far; each write begins with them."""
        self._rest = b""
        try:
            self._file = path.open("ab", buffering=0)  # what could not be written would stay in a buffer
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as failure:  # some network file systems say only now that the disk is full
            if error is None:
                raise cannot_write(self._path, failure) from failure

    def write(self, **row: float | int | str | dict[str, float]) -> None:
        """Append a row, after those that could not be written before. Raises InputError where the disk is full, or the
        file or its folder is gone; `catch_up` then tries again."""
        self.unwritten.append(row)
        self.catch_up()

    def catch_up(self) -> None:
        """Write what could not be written before. Raises as `write`."""
        if not self.unwritten:
            return
        self._check()
        try:
            there = os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            there = False
        if not there:
            raise InputError(f"{self._path}: was removed or replaced while the run was writing to it")
        try:
            while self.unwritten:
                self._rest = self._rest or _as_line(self.unwritten[0])
                while self._rest:
                    self._rest = self._rest[self._file.write(self._rest) :]
                del self.unwritten[0]
        except OSError as error:
            raise cannot_write(self._path, error) from error


def read_rows(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The rows of a metrics file, each as its line and its values; a last line that was cut short is left out.

    Raises InputError naming the line that is no row: no object, without a step, or too long.
    """
    lines = read_bytes(path, MAX_METRICS_BYTES).splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parse_row(line)
        if row is not None:
            rows.append((line, row))
        elif number < len(lines) or line.endswith(b"\n"):
            raise InputError(
                f"{path}: line {number} is no row of metrics ({one_line(line[:40].decode(errors='replace'))}); remove "
                "the line, or move the file away to resume without its rows"
            )
    return rows


def _as_line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()


def is_row(row: object) -> bool:
    """Whether a JSON value is a row of a metrics file."""
    return isinstance(row, dict) and _parse_row(_as_line(row)) is not None


def _is_flat(name: str, value: object) -> bool:
    """Whether a row may have this value: a number or a text, or numbers by the names of classes."""
    if name == DICE_BY_CLASS and isinstance(value, dict):
        return all(isinstance(each, int | float) for each in value.values())
    return not isinstance(value, dict | list)


def _parse_row(line: bytes) -> dict[str, Any] | None:
    """A row of a step or of a validation; None for anything else."""
    try:
        row = json.loads(line) if len(line) <= MAX_ROW_BYTES and line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(_is_flat(*item) for item in row.items()):
        return None
    step = row.get("step")
    return row if type(step) is int and 0 <= step <= MAX_STEP else None
