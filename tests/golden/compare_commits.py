"""Run the same probes in two commits of this repository, and compare what they find, bit for bit:

    python tests/golden/compare_commits.py BEFORE AFTER [--only NAME ...] [--data DIR] [--keep DIR]

It is for rebuilding without changing a number, where AFTER may have other names, flags and commands than BEFORE: each
commit is run by the file of probes that speaks its words. Both run at the same time, one thread a process, in the
Python environment that runs this program. Prints one row a probe, and exits with 1 where a result differs or a probe
failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probing import environment, flatten

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PROBES = (
    "training",
    "scores",
    "masks",
    "onnx",
    "initial-weights",
    "batches",
    "shards",
    "real-shards",
    "study",
)
"""In this order: scores, masks and onnx take what training left."""
CHARACTERS = 24
"""Of a value that differs, shown from just before the first difference."""


@dataclass(frozen=True)
class Outcome:
    """What a probe found in a commit: its results, or why there are none. is_failure: for no good reason."""

    results: dict[str, Any] | None
    why: str = ""
    is_failure: bool = False


@dataclass(frozen=True)
class Verdict:
    """A row of the table."""

    word: str
    detail: str
    is_bad: bool


def main() -> None:
    arguments = _read_arguments()
    names = [name for name in PROBES if not arguments.only or name in arguments.only]
    with ExitStack() as stack:
        work = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-commits-")))
        commits = {side: getattr(arguments, side) for side in ("before", "after")}
        folders = {
            side: stack.enter_context(worktree(commit, work / f"{side}-commit")) for side, commit in commits.items()
        }
        with ThreadPoolExecutor(2) as pool:
            jobs = {
                side: pool.submit(run_probes, folder, work / side, arguments.data, names)
                for side, folder in folders.items()
            }
            found = {side: job.result() for side, job in jobs.items()}
    verdicts = {name: compare(found["before"][name], found["after"][name]) for name in names}
    width = max(map(len, names))
    print(f"{'probe':{width}}  result")
    for name, verdict in verdicts.items():
        print(f"{name:{width}}  {verdict.word}: {verdict.detail}")
    if any(verdict.is_bad for verdict in verdicts.values()):
        sys.exit(1)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="BEFORE", help="a commit, a branch or a tag")
    parser.add_argument("after", metavar="AFTER")
    parser.add_argument("--only", nargs="+", choices=PROBES, metavar="NAME", help=f"of {', '.join(PROBES)}")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help="real images")
    parser.add_argument("--keep", type=Path, help="a new folder for what the probes write; by default it is removed")
    arguments = parser.parse_args()
    if arguments.keep:
        arguments.keep = arguments.keep.resolve()
        if arguments.keep.exists():
            parser.error(f"--keep {arguments.keep}: exists; name a new folder")
        arguments.keep.mkdir(parents=True)
    arguments.data = arguments.data.resolve()
    return arguments


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit, for as long as the context lasts."""
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def run_probes(commit: Path, work: Path, data: Path, names: list[str]) -> dict[str, Outcome]:
    """Run probes, one after the other, on the files of a commit. work: a new folder."""
    work.mkdir()
    return {name: _run(name, commit, work, data) for name in names}


def _run(name: str, commit: Path, work: Path, data: Path) -> Outcome:
    program = HERE / ("probes_new.py" if (commit / "glioma_dist" / "cli").is_dir() else "probes_old.py")
    words = [sys.executable, str(program), name, "--work", str(work), "--data", str(data)]
    began = time.monotonic()
    done = subprocess.run(words, cwd=commit, env=environment(commit), capture_output=True, text=True, check=False)
    (work / f"{name}.output").write_text(done.stdout + done.stderr)
    print(f"{work.name}, {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Outcome(None, f"{program.name} ended with {done.returncode}: {last[:300]}", is_failure=True)
    found = json.loads((work / f"{name}.json").read_text())
    return Outcome(found.get("results"), found.get("cannot run", ""))


def compare(before: Outcome, after: Outcome) -> Verdict:
    """Equal, different or not run; where nothing but a missing library or missing images is the reason, that is not
    bad."""
    missing = {"before": before, "after": after}
    reasons = [f"{side}: {each.why}" for side, each in missing.items() if each.results is None]
    if reasons:
        is_bad = before.is_failure or after.is_failure or len(reasons) == 1
        return Verdict("not run", "; ".join(reasons), is_bad)
    old, new = flatten(before.results), flatten(after.results)
    others = [name for name in {**old, **new} if name not in old or name not in new or not same(old[name], new[name])]
    if not old:
        return Verdict("not run", "there are no results to compare", True)
    if not others:
        return Verdict("equal", f"{len(old)} values", False)
    first = others[0]
    told = " and ".join(f"{side} {_shown(first, side, old, new)}" for side in ("before", "after"))
    return Verdict("differs", f"{len(others)} of {len({**old, **new})} values; the first is {first}: {told}", True)


def same(one: object, other: object) -> bool:
    """Equal in kind and in every bit; NaN equals itself."""
    return json.dumps(one) == json.dumps(other)


def _shown(name: str, side: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    mine, others = (old, new) if side == "before" else (new, old)
    if name not in mine:
        return "has none"
    text, other = str(mine[name]), str(others.get(name))
    place = next((n for n, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, place - CHARACTERS // 4)
    shown = text[start : start + CHARACTERS]
    return f"{'…' if start else ''}{shown}{'…' if start + CHARACTERS < len(text) else ''}"


if __name__ == "__main__":
    main()
