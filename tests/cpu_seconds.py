"""A plugin of pytest that writes how many CPU seconds each test takes, its processes included (`tiers.py`).

    PYTHONPATH=tests python -m pytest -p cpu_seconds --cpu-seconds seconds.jsonl

A line of the file is a list: the test's id, its CPU seconds, its seconds. Linux only.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file."""
    parser.addoption("--cpu-seconds", type=Path, help="a file to add CPU seconds of each test to")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure a test with what is set up for it."""
    before, start = cpu_seconds(), time.monotonic()
    result = yield
    if file := item.config.getoption("cpu_seconds"):
        row = (item.nodeid, round(cpu_seconds() - before, 3), round(time.monotonic() - start, 3))
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
    return result


def cpu_seconds() -> float:
    """Of this process, of all that it has started and that live, and of those of them that have ended."""
    ticks, children = {}, defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                ticks[int(entry.name)] = sum(map(int, fields[11:15]))
                children[int(fields[1])].append(int(entry.name))
    total, todo = 0, [os.getpid()]
    while todo:
        process = todo.pop()
        total += ticks.get(process, 0)
        todo += children[process]
    return total / os.sysconf("SC_CLK_TCK")
