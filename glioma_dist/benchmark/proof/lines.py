"""One line of the proof run: a figure, its limit, and what follows. No torch here: the runner has to outlive it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from glioma_dist.errors import one_line

Status = Literal["PASS", "FAIL", "SKIPPED"]
Relation = Literal["at most", "at least", "equal to"]
Device = Literal["cuda", "cpu"]
MAX_NOTE = 300
"""Characters of a note."""


@dataclass(frozen=True)
class Line:
    """What the page says of one thing that was looked at."""

    check: str
    name: str
    status: Status
    value: float | str | None = None
    relation: Relation | None = None
    limit: float | str | None = None
    unit: str = ""
    note: str = ""
    """Why a line failed or was skipped, or what else was seen."""


@dataclass(frozen=True)
class Setting:
    """What a check is given."""

    device: Device
    num_devices: int
    """GPUs that may be used; on a CPU the number of processes of a launch."""
    shards: str
    """Folder with `train` and `val`."""
    folder: str
    """An empty folder for what the check writes."""

    @property
    def tiny(self) -> bool:
        """Whether this is a rehearsal: the smallest sizes that still go through all of the code."""
        return self.device == "cpu"


class Findings:
    """Where a check puts its figures, each at once: what it has found stays when it crashes later.

    A check gives figures and limits. Whether a line passes is decided by the runner alone (`judge`).
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def at_most(self, name: str, value: float, limit: float, unit: str = "", note: str = "") -> None:
        self._add(name, value=value, relation="at most", limit=limit, unit=unit, note=note)

    def at_least(self, name: str, value: float, limit: float, unit: str = "", note: str = "") -> None:
        self._add(name, value=value, relation="at least", limit=limit, unit=unit, note=note)

    def equal(self, name: str, value: float | str, limit: float | str, unit: str = "", note: str = "") -> None:
        self._add(name, value=value, relation="equal to", limit=limit, unit=unit, note=note)

    def skipped(self, name: str, reason: str) -> None:
        """Say why there is no figure here."""
        self._add(name, skipped=reason)

    def _add(self, name: str, **fields: Any) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps({"name": name, **fields}) + "\n")


def read_findings(file: Path) -> dict[str, dict]:
    """Name of a line -> what a check found; of a last line that was cut off by a crash, nothing."""
    found: dict[str, dict] = {}
    for text in file.read_text().splitlines() if file.exists() else ():
        try:
            row = json.loads(text)
            found[row["name"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found


def worst(differences: Iterable[float]) -> float:
    """The largest; infinite where one is no number, which Python's `max` may pass over, or where there are none."""
    found = list(differences)
    return max(found) if found and all(map(math.isfinite, found)) else math.inf


def judge(check: str, row: Mapping[str, Any]) -> Line:
    """The line of what a check found. What is no figure, or has no limit, fails."""
    name = row["name"]
    if "skipped" in row:
        return Line(check, name, "SKIPPED", note=one_line(row["skipped"], MAX_NOTE))
    value, relation, limit = row.get("value"), row.get("relation"), row.get("limit")
    note = one_line(row.get("note", ""), MAX_NOTE)
    line = Line(check, name, "FAIL", value, relation, limit, row.get("unit", ""), note)
    if relation not in get_args(Relation):
        return replace(line, relation=None, note=f"no limit was given; {note}")
    if not (_is_figure(value) and _is_figure(limit)):
        told = f"the value is {value}, the limit {limit}; {note}"
        return replace(line, value=None, limit=None, note=one_line(told, MAX_NOTE))
    comparable = _is_number(value) == _is_number(limit)
    if relation == "equal to":
        good = comparable and value == limit
    else:
        good = comparable and _is_number(value) and (value <= limit if relation == "at most" else value >= limit)
    return replace(line, status="PASS" if good else "FAIL")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_figure(value: object) -> bool:
    """A finite number, or a text that says something."""
    return math.isfinite(value) if _is_number(value) else isinstance(value, str) and bool(value)
