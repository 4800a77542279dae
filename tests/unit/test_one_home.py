"""One idea has one home: what is computed, refused or recognised in one module is written in no other."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("glioma_dist", "tools", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))
HOMES = {
    "counting operations": (r"\bFlopCounterMode\b", {"scale/operations.py"}),
    "the step's arithmetic": (
        r"\bbackward\(loss|\bloss(es)?\b[^\n]*\.backward\(",
        {"scale/gradients.py", "scale/module_memory.py"},
    ),  # there: of any module
    "signs of a full memory": (r"bad_alloc|can't allocate memory|alloc_failed", {"errors.py"}),
    "variables of a launch": (r"ACCELERATE\|FSDP", {"distributed/launched.py"}),
    "the bound on pixels": (r"^MAX_PIXELS *=", {"limits.py"}),
    "seeding all generators of the process, on every device": (
        r"\b(torch|cuda|random)\.(manual_)?seed(_all)?\(",
        set(),
    ),
    "drawing from a generator of the process": (r"torch\.(rand|randn|randint|randperm)\((?![^\n]*generator)", set()),
    "writing CSV": (r"csv\.(Dict)?[wW]riter\(|to_csv\(", {"csv_tables.py"}),
    "a process's peak memory": (r"clear_refs|VmHWM|max_memory_allocated", {"benchmark/peak_memory.py"}),
}
"""Idea -> what its code has in it, and the module that has it."""


@pytest.mark.parametrize("idea", HOMES)
def test_each_idea_has_one_home(idea):
    pattern, homes = HOMES[idea]
    found = {
        str(path.relative_to(REPOSITORY / "glioma_dist"))
        if path.is_relative_to(REPOSITORY / "glioma_dist")
        else str(path)
        for path in SOURCES
        if re.search(pattern, path.read_text(), re.MULTILINE)
    }
    assert found == homes
