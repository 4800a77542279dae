"""Launches of several processes, one a GPU, as `torchrun` makes them; on a CPU over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from glioma_dist.benchmark.launching import start_ranks
from glioma_dist.benchmark.proof.lines import Setting, worst
from glioma_dist.benchmark.proof.trainings import variables

RANKS = "glioma_dist.benchmark.proof.ranks"


def start_on(
    setting: Setting, command: Sequence[str], num_processes: int, extra: Mapping[str, str] | None = None
) -> list[subprocess.Popen]:
    """Start `command` as every rank of one launch on the setting's devices."""
    return start_ranks(command, os.environ | variables(setting) | dict(extra or {}), num_processes)


class LaunchFailedError(Exception):
    """A process of a launch did not end well."""


def ask_ranks(
    task: str, setting: Setting, num_processes: int, extra: Mapping[str, str] | None = None, **given: str
) -> Iterator[tuple[str, float]]:
    """What `task` of ranks.py finds in a launch: each name, and the largest of the processes' figures.

    Raises LaunchFailedError where a process did not end well, after what all had found before.
    """
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        words = [sys.executable, "-m", RANKS, task, json.dumps(asdict(setting)), json.dumps(given), folder]
        codes = [rank.wait() for rank in start_on(setting, words, num_processes, extra)]
        files = [Path(folder) / f"{rank}.jsonl" for rank in range(num_processes)]
        told = [[json.loads(line) for line in file.read_text().splitlines()] if file.exists() else [] for file in files]
    for row in zip(*told, strict=False):
        yield row[0][0], worst(value for _, value in row)
    if any(codes):
        raise LaunchFailedError(f"{task} {given}: the processes ended with {codes}; the lines above say why")
