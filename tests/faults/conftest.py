"""The server of forked runs, drawn shards, and the table that a whole run of the harness writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest.register_assert_rewrite("contract", "stage", "inflict", "inputs", "disk", "streams", "forks")

from forks import Ended, Forks
from stage import Shared

RESULTS: dict[str, dict] = {}
"""By the id of the test."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-table", help="JSON file to write each fault's result to")


@pytest.fixture(scope="session")
def forks(tmp_path_factory) -> Forks:
    with Forks(tmp_path_factory.mktemp("streams")) as forks:
        yield forks


@pytest.fixture(scope="session")
def shared(forks: Forks, tmp_path_factory) -> Shared:
    from helpers import draw_shards

    data = tmp_path_factory.mktemp("data")
    draw_shards(data / "train", range(10))
    draw_shards(data / "val", range(100, 103))
    return Shared(forks, tmp_path_factory.mktemp("undisturbed"), data)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keeps how a fault's processes ended for the table."""

    def keep(fault: object, ended: Sequence[Ended]) -> None:
        lines = [line for end in ended for line in end.stderr.splitlines()]
        RESULTS[request.node.nodeid] = {
            "name": fault.name,
            "kind": fault.kind,
            "codes": [end.code for end in ended],
            "line": lines[0] if lines else "",
            "seconds": round(max(end.seconds for end in ended), 1),
            "peak_mib": round(max(end.peak_mib for end in ended)),
        }

    return keep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> object:
    report = yield
    if report.when == "call" and item.nodeid in RESULTS:
        RESULTS[item.nodeid]["passed"] = report.passed
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--faults-table", None)
    if path:
        Path(path).write_text(json.dumps(list(RESULTS.values()), indent=1) + "\n")
