"""Which tests `make test` leaves to `make test-all`, and that to `make test-slow`: those of `tiers.csv`.

A row names a test, a file or a folder. Its cells say how many of the test's parameters `make test` and `make test-all`
run: all (an empty cell), a number, spread over all of them, or those that begin with one of some texts, as
"mit_tiny|vgg19". `make test` takes its share of what `make test-all` runs.

The rule: `make test` runs as much of a test as takes two CPU seconds. `make test-all` runs as much as takes three, at
least one of its parameters, and all of them where each is something that a user can name (commands, paths, readers).
`cpu_seconds.py` measures them.
"""

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("tiers.csv")
COLLECTED = pytest.StashKey[list[str]]()
"""In a run's config: the ids of all tests that were collected, before a tier was chosen."""

LONGEST_FILES = (
    "tests/end_to_end/test_bench_gpu.py",
    "tests/unit/test_step_formulas.py",
    "tests/unit/test_kernel_limits.py",
    "tests/unit/test_compile.py",
    "tests/distributed/test_every_encoder.py",
    "tests/unit/test_planner.py",
    "tests/distributed/test_resume_bits.py",
    "tests/unit/test_synchronisation.py",
    "tests/chaos/test_chaos.py",
    "tests/unit/test_timm_models.py",
    "tests/distributed/test_processes.py",
    "tests/distributed/test_fused_adam.py",
    "tests/distributed/test_fsdp.py",
    "tests/distributed/test_spatial_parallel.py",
    "tests/end_to_end/test_endings.py",
    "tests/distributed/test_spatial_parallel_runs.py",
    "tests/distributed/test_resume_processes.py",
    "tests/distributed/test_joining.py",
    "tests/distributed/test_machines.py",
    "tests/unit/test_worker_pool.py",
    "tests/unit/test_tile_size.py",
    "tests/end_to_end/test_training.py",
    "tests/unit/test_object_store.py",
    "tests/fuzz/test_fuzz.py",
    "tests/end_to_end/test_resume.py",
    "tests/unit/test_convert.py",
    "tests/unit/test_remote_run.py",
    "tests/unit/test_transfer.py",
    "tests/unit/test_download.py",
    "tests/distributed/test_collectives.py",
    "tests/distributed/test_any_timm_processes.py",
    "tests/end_to_end/test_study.py",
    "tests/unit/test_deterministic.py",
)
"""Files of more than about half a minute in `make test-all`, the longest first. A file's tests stay on one core: what
is begun last should be short, or the other cores wait for it."""


def begins_at(test: str) -> int:
    """The place of a test's file in the order in which files are begun; those that are not listed share the last."""
    file = test.partition("::")[0]
    return LONGEST_FILES.index(file) if file in LONGEST_FILES else len(LONGEST_FILES)


@cache
def shares() -> dict[str, tuple[str, str]]:
    """Test, file or folder -> the cells of `make test` and `make test-all`."""
    with TABLE.open() as file:
        return {row["test"]: (row["make test"], row["make test-all"]) for row in csv.DictReader(file)}


def share_of(test: str) -> tuple[str, str]:
    """The cells for a test, named without its parameters: of its own row, or of its file's or folder's."""
    table, file = shares(), test.partition("::")[0]
    folder = file.rpartition("/")[0]
    return next((table[each] for each in (test, file, folder) if each in table), ("", ""))


def chosen(cell: str, ids: Sequence[str]) -> list[str]:
    """Which of a test's ids, as pytest prints them, a cell takes."""
    if not cell:
        return list(ids)
    if cell.isdecimal():
        number = min(int(cell), len(ids))
        return [ids[place * len(ids) // number] for place in range(number)]
    return [each for each in ids if each.partition("[")[2].startswith(tuple(cell.split("|")))]


def tiers_of(test: str, ids: Sequence[str]) -> tuple[set[str], set[str]]:
    """Of a test's ids those that are long, and those that are slow."""
    in_test, in_test_all = share_of(test)
    run = chosen(in_test_all, ids)
    return set(run) - set(chosen(in_test, run)), set(ids) - set(run)
