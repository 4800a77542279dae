"""hashes.jsonl of a run, read and written as a forger would."""

from __future__ import annotations

import json
from pathlib import Path

from glioma_dist.training.step_hashes import CHAIN, link


def write_chain(out: Path, rows: list[dict]) -> None:
    """Write hashes.jsonl as a forger would, with hashes that fit."""
    chain, lines = "", []
    for row in rows:
        row = {name: value for name, value in row.items() if name != CHAIN}
        chain = link(chain, row)
        lines.append(json.dumps({**row, CHAIN: chain}))
    (out / "hashes.jsonl").write_text("\n".join(lines) + "\n")


def hash_rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "hashes.jsonl").read_text().splitlines()]
