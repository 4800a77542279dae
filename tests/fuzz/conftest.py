"""The server that fuzzing forks its batches from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "faults"), str(Path(__file__).parent)]

from forks import Forks


@pytest.fixture(scope="session")
def fuzz_forks(tmp_path_factory) -> Forks:
    with Forks(tmp_path_factory.mktemp("batches")) as forks:
        yield forks
