"""Whatever bytes the program is given: it reads them or refuses them in one line, soon and in bounded memory.

    FUZZ_INPUTS=10000 FUZZ_KEEP=found python -m pytest tests/fuzz -m fuzz

FUZZ_INPUTS: how many over all targets. FUZZ_SEED: another seed gives other inputs. FUZZ_KEEP: a folder for those that
fail. FUZZ_CASES: a folder with more TIFF and PNG files to start from. FUZZ_TABLE: a JSON file for the counts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from forks import Forks, wait_until
from targets import TARGETS

INPUTS = int(os.environ.get("FUZZ_INPUTS", "45"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SECONDS_AN_INPUT = 30
MIB_AN_INPUT = 600
"""Beyond what the process held before."""
BATCH = 200
pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]


@pytest.fixture(scope="session")
def run_folder(fuzz_forks: Forks, tmp_path_factory) -> Path:
    """A run of two steps, to change the files of."""
    from helpers import draw_shards

    folder = tmp_path_factory.mktemp("run")
    draw_shards(folder / "train", range(4), width=64, height=64)
    flags = {
        "data.train": folder / "train",
        "data.val": folder / "train",
        "data.size": "64x64",
        "data.workers": 0,
        "model.encoder": "mit_tiny",
        "model.decoder-channels": "16 16 8 8 8",
        "batch-size": 2,
        "max-steps": 2,
        "out": folder / "run",
    }
    arguments = [part for name, value in flags.items() for part in (f"--{name}", *str(value).split(" "))]
    ended = fuzz_forks.start("train.py", arguments).wait(120)
    assert ended.code == 0, ended.stderr
    return folder / "run"


def read_results(folder: Path) -> list[dict]:
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("target", TARGETS)
def test_any_input_is_read_or_refused(target: str, fuzz_forks: Forks, run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "batch"
    folder.mkdir()
    count = max(1, INPUTS // len(TARGETS))
    number, failures = 0, []
    while number < count:
        end = min(count, number + BATCH)
        environment = {"FUZZ_RUN": str(run_folder)}
        arguments = [target, SEED, number, end, str(folder), SECONDS_AN_INPUT]
        run = fuzz_forks.start("batch:run_batch", arguments, environment)
        wait_until(run.ended.is_set, SECONDS_AN_INPUT * (end - number) + 60, "the batch does not end")
        ended = run.wait(1)
        if ended.code == 0:
            number = end
            continue
        current = folder / "current"
        assert current.exists(), ended.stderr[-3000:]
        number = int(current.read_text())
        kind = "hang" if ended.code == -14 else "crash"
        with open(folder / "results.jsonl", "a") as results:
            detail = f"ended with {ended.code}: {ended.stderr[-1500:]}"
            results.write(json.dumps({"number": number, "ended": kind, "detail": detail}) + "\n")
        if (folder / "input").exists():
            shutil.copytree(folder / "input", folder / f"kept-{number}", symlinks=True, dirs_exist_ok=True)
        number += 1
    results = read_results(folder)
    assert sorted(found["number"] for found in results) == list(range(count))
    for found in results:
        if found["ended"] not in ("read", "refused"):
            failures.append(f"input {found['number']}: {found['ended']}: {found.get('detail', '')}")
        elif found["mib"] > MIB_AN_INPUT:
            failures.append(f"input {found['number']}: takes {found['mib']} MiB")
    _keep(target, folder, results)
    shown = "\n".join(failures[:20])
    assert not failures, f"{target}, seed {SEED}: {len(failures)} of {count} inputs fail:\n{shown}"


def _keep(target: str, folder: Path, results: list[dict]) -> None:
    """The inputs that failed, and a line of the table of counts."""
    if keep := os.environ.get("FUZZ_KEEP"):
        for path in folder.glob("kept-*"):
            shutil.copytree(path, Path(keep) / target / f"{SEED}-{path.name.removeprefix('kept-')}", dirs_exist_ok=True)
    if table := os.environ.get("FUZZ_TABLE"):
        told = json.loads(Path(table).read_text()) if Path(table).exists() else {}
        told[target] = {
            "inputs": len(results),
            "seed": SEED,
            **Counter(found["ended"] for found in results),
            "slowest_seconds": max(found.get("seconds", 0) for found in results),
            "most_mib": max(found.get("mib", 0) for found in results),
        }
        Path(table).write_text(json.dumps(told, indent=1) + "\n")
