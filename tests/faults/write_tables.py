"""Put the results of `make faults`, `make fuzz` or benchmarks/chaos.py into docs/reliability.md, between its marks."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "reliability.md"
ENDS = {0: "finished", 1: "partly done", 2: "refused", 69: "unavailable", 75: "stopped", -9: "killed"}


def faults_table(results: list[dict]) -> str:
    """A line of counts, and a table row for each fault."""
    sweeps = [result for result in results if "tried" in result]
    results = [result for result in results if "tried" not in result]
    passed, kinds = sum(result["passed"] for result in results), sorted({result["kind"] for result in results})
    lines = [
        f"{passed} of {len(results)} faults pass: `make faults`, commit {commit()}, {os.cpu_count()} CPU cores.",
        "",
        "| Kind | Fault | Exit codes | Time (s) | Memory (MiB) | Result |",
        "|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        for result in (result for result in results if result["kind"] == kind):
            codes = ", ".join(f"{code} {ENDS.get(code, '')}".strip() for code in dict.fromkeys(result["codes"]))
            word = "passed" if result["passed"] else "FAILED"
            lines.append(
                f"| {kind} | {result['name']} | {codes} | {result['seconds']:.1f} | {result['peak_mib']} | {word} |"
            )
    for result in sweeps:
        which = "each one" if result["step"] == 1 else f"one in {result['step']}"
        passed = result["tried"] - result["wrong"]
        lines += ["", f"{result['name']} ({which} is tried): {passed} of {result['tried']} pass."]
    return "\n".join(lines)


def fuzz_table(results: dict[str, dict]) -> str:
    """A line of counts, and a table row for each target."""
    total = sum(result["inputs"] for result in results.values())
    good = sum(result.get("read", 0) + result.get("refused", 0) for result in results.values())
    seeds = ", ".join(sorted({str(result["seed"]) for result in results.values()}))
    lines = [
        f"{good} of {total} inputs pass: `make fuzz INPUTS={total} SEED={seeds}`, commit {commit()}, "
        f"{os.cpu_count()} CPU cores.",
        "",
        "| Target | Inputs | Read | Refused in one line | Traceback, crash or hang | Slowest (s) | Most memory (MiB) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        read, refused = result.get("read", 0), result.get("refused", 0)
        lines.append(
            f"| {name} | {result['inputs']} | {read} | {refused} | {result['inputs'] - read - refused} | "
            f"{result['slowest_seconds']:.1f} | {result['most_mib']} |"
        )
    return "\n".join(lines)


def commit() -> str:
    """The commit that was tested, and whether the files differ from it."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def put(name: str, table: str) -> None:
    text = PAGE.read_text()
    pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
    assert re.search(pattern, text, re.DOTALL), f"{PAGE} has no marks of {name}"
    PAGE.write_text(re.sub(pattern, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=Path, help="JSON file of FAULTS_TABLE")
    parser.add_argument("--fuzz", type=Path, help="JSON file of FUZZ_TABLE")
    parser.add_argument("--chaos", type=Path, help="chaos.md of benchmarks/chaos.py")
    given = parser.parse_args()
    if given.faults:
        put("faults", faults_table(json.loads(given.faults.read_text())))
    if given.fuzz:
        put("fuzz", fuzz_table(json.loads(given.fuzz.read_text())))
    if given.chaos:
        put("chaos", given.chaos.read_text().rstrip("\n"))


if __name__ == "__main__":
    main()
