"""Rows of docs/equality.md: what each test marked `equality` compares, and whether it passed.

With EQUALITY_TABLE=FILE in the environment, pytest writes a JSON line there for each of these tests that was run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest

VARIABLE = "EQUALITY_TABLE"
KINDS = {"bits": "bit-identical", "1e-9": "1e-9 in fp64", "refused": "refused, in one line"}
"""What a test promises -> the words of the page."""
KIND = "equality kind"
"""A property that a test records where it depends on what it was given which of them it is."""


class Row(NamedTuple):
    """flag, encoder and processes are texts; test: file and function, without its parameters."""

    flag: str
    encoder: str
    processes: str
    kind: str
    test: str


def row_of(item: pytest.Item) -> Row | None:
    """The row of a test; None where it has no mark. What is in braces in the mark is of the test's parameters."""
    mark = item.get_closest_marker("equality")
    if mark is None:
        return None
    given = getattr(item, "callspec", None)
    parameters = given.params if given else {}
    texts = [str(mark.kwargs[name]).format(**parameters) for name in ("flag", "encoder", "processes", "kind")]
    assert texts[3] in KINDS, f"{item.nodeid}: kind {texts[3]}"
    return Row(*texts, item.nodeid.partition("[")[0])


def note_rows(items: list[pytest.Item]) -> None:
    """Give the reports of marked tests their rows."""
    for item in items:
        row = row_of(item)
        if row is not None:
            item.user_properties.append(("equality", list(row)))


def write_row(report: pytest.TestReport) -> None:
    """Write the row of a test that was run, where the environment asks for it."""
    told = dict(report.user_properties)
    row, path = told.get("equality"), os.environ.get(VARIABLE)
    if row is None or path is None or report.when != "call" or report.skipped or "PYTEST_XDIST_WORKER" in os.environ:
        return
    row = Row(*row)._replace(kind=told.get(KIND, row[3]))
    with Path(path).open("a") as file:
        file.write(json.dumps({**row._asdict(), "passed": report.passed}) + "\n")
