"""The server of forked runs, drawn shards, and the table that a whole run of the harness writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from contract import Fault
    from forks import Ended, Forks
    from stage import Shared

RESULTS: dict[str, dict] = {}
"""By the id of the test."""


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    from forks import PRELOADED, Forks

    tests = Path(__file__).parents[1]
    with Forks(tmp_path_factory.mktemp("streams"), [tests, tests / "faults"], (*PRELOADED, "helpers")) as forks:
        yield forks


@pytest.fixture(scope="session")
def shared(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    from helpers import draw_shards
    from stage import Shared

    data = tmp_path_factory.mktemp("data")
    draw_shards(data / "train", range(10))
    draw_shards(data / "val", range(100, 103))
    return Shared(forks, tmp_path_factory.mktemp("undisturbed"), data)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keeps how a fault's processes ended for the table."""

    def keep(fault: Fault, ended: Sequence[Ended]) -> None:
        from contract import said

        lines = [line for end in ended for line in said(end)]
        RESULTS[request.node.nodeid] = {
            "name": fault.name,
            "kind": fault.kind,
            "codes": [end.code for end in ended],
            "line": lines[0] if lines else "",
            "seconds": round(max(end.seconds for end in ended), 1),
            "peak_mib": round(max(end.peak_mib for end in ended)),
        }

    return keep


@pytest.fixture
def record_sweep(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keeps a sweep's counts for the table."""

    def keep(name: str, count: int, num_wrong: int, step: int) -> None:
        told = {"name": name, "kind": "Sweep", "tried": count, "wrong": num_wrong, "step": step}
        RESULTS[request.node.nodeid] = told

    return keep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> object:
    report = yield
    if report.when == "call" and item.nodeid in RESULTS:
        RESULTS[item.nodeid]["passed"] = report.passed
        # After each, so that nothing is lost where the tests are ended.
        if path := os.environ.get("FAULTS_TABLE"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps(list(RESULTS.values()), indent=1) + "\n")
    return report
