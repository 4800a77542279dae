"""docs/equality.md is made of the tests' own results, and its rows belong to tests that exist."""

import ast
import re
from pathlib import Path

import pytest
from equality import rows
from equality.write_table import BEGIN, CELL, END, PAGE, table_of

REPOSITORY = Path(__file__).resolve().parents[2]


def marked_tests() -> set[str]:
    """File::function of each test with the mark."""
    found = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        if "pytest.mark.equality" in path.read_text():
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef) and any(
                    "mark.equality" in ast.unparse(d) for d in node.decorator_list
                ):
                    found.add(f"{path.relative_to(REPOSITORY)}::{node.name}")
    return found


def page_rows() -> list[re.Match]:
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    return [match for line in table.splitlines() if (match := CELL.match(line)) and "`" in line]


def test_each_row_is_of_a_marked_test_and_passed():
    found = page_rows()
    assert len(found) >= 5
    assert {row["test"] for row in found} == marked_tests(), "run make equality"
    assert {row["kind"] for row in found} <= set(rows.KINDS.values())


def test_results_become_rows_and_a_failure_is_told():
    one = {"flag": "a", "encoder": "x", "processes": "2", "kind": "bits", "test": "t.py::t", "passed": True}
    table = table_of([one, {**one, "encoder": "y"}, {**one, "kind": "1e-9", "passed": False}])
    assert table.startswith("2 of 3 tests pass")
    assert "| a | x, y | 2 | bit-identical | `t.py::t` |" in table
    assert "| a | x | 2 | FAILED | `t.py::t` |" in table


def test_a_run_of_a_marked_test_writes_its_row(tmp_path, monkeypatch):
    monkeypatch.setenv(rows.VARIABLE, str(tmp_path / "rows.jsonl"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    properties = [("equality", ["f", "e", "2", "1e-9", "t.py::t"]), (rows.KIND, "refused")]
    report = pytest.TestReport("t.py::t[e]", ("t.py", 1, "t"), {}, "passed", None, "call", user_properties=properties)
    rows.write_row(report)
    assert '"kind": "refused"' in (tmp_path / "rows.jsonl").read_text()
