"""Put the results of the tests marked `equality` into docs/equality.md, between its marks (`make equality`)."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections import defaultdict
from pathlib import Path

from equality.rows import KINDS, Row

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "equality.md"
BEGIN, END = "<!-- equality: begin -->", "<!-- equality: end -->"
CELL = re.compile(
    r"^\| (?P<flag>[^|]+) \| (?P<encoders>[^|]+) \| (?P<processes>[^|]+) \| (?P<kind>[^|]+) \| `(?P<test>[^`]+)` \|$"
)
"""A row of the table."""


def table_of(results: list[dict]) -> str:
    """A line of counts, and a row for each setting, number of processes, promise and test."""
    passed, encoders = 0, defaultdict(dict)
    for result in results:
        row = Row(**{name: result[name] for name in Row._fields})
        word = KINDS[row.kind] if result["passed"] else "FAILED"
        passed += result["passed"]
        encoders[(row.flag, row.processes, word, row.test)][row.encoder] = None
    lines = [
        f"{passed} of {len(results)} tests pass: `make equality`, commit {commit()}.",
        "",
        "| Setting | Encoders | Processes | Equal to one process without it | Test |",
        "|---|---|---|---|---|",
    ]
    for (flag, processes, word, test), names in sorted(encoders.items()):
        lines.append(f"| {flag} | {', '.join(names)} | {processes} | {word} | `{test}` |")
    return "\n".join(lines)


def commit() -> str:
    """The commit that was tested, and whether the files differ from it."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="file of EQUALITY_TABLE")
    results = [json.loads(line) for line in parser.parse_args().results.read_text().splitlines()]
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table_of(results)}\n{END}{after}")


if __name__ == "__main__":
    main()
