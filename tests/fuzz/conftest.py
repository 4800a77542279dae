"""The server that fuzzing forks its batches from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import PRELOADED, Forks


@pytest.fixture(scope="session")
def fuzz_forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    tests = Path(__file__).parents[1]
    with Forks(
        tmp_path_factory.mktemp("batches"), [tests, tests / "fuzz", tests / "unit"], (*PRELOADED, "helpers", "batch")
    ) as forks:
        yield forks
