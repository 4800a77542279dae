"""The ledger of GPU figures: estimated and measured memory of training steps, a row of a Markdown table each."""

from __future__ import annotations

import json
import re
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from pathlib import Path

COUNTED = re.compile(r"(\S+) (\d+x\d+): counted ([\d.]+) GiB, allocated ([\d.]+) GiB")
RESERVED = re.compile(r"reserved ([\d.]+) GiB")
ALLOCATED_LINE = re.compile(r"\w+, (\w+): allocated")


@dataclass(frozen=True)
class LedgerRow:
    """One training step on a GPU."""

    gpu: str
    torch: str
    network: str
    inputs: str
    """Shapes of the inputs, as "2x3x256x256"."""
    precision: str
    checkpointing: str
    """Level of activation checkpointing; "none" for networks of others."""
    counted_gib: float
    """By the estimator."""
    allocated_gib: float
    """At most, by PyTorch."""
    reserved_gib: float | None
    """What PyTorch took from the GPU, gaps between tensors included."""
    commit: str
    """Of glioma-dist."""
    date: str
    source: str
    """A folder of docs/benchmarks, or who measured it."""

    def line(self) -> str:
        """The row in Markdown."""
        cells = ["" if each is None else f"{each:.3f}" if isinstance(each, float) else each for each in astuple(self)]
        return f"| {' | '.join(cells)} |"

    @classmethod
    def of_line(cls, line: str) -> LedgerRow:
        """Read a row. Raises ValueError for one of other columns, without numbers, or with an empty cell."""
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        names = [field.name for field in fields(cls)]
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} cells, but {len(names)} columns: {line}")
        values: dict[str, str | float | None] = dict(zip(names, cells, strict=True))
        for name in ("counted_gib", "allocated_gib", "reserved_gib"):
            values[name] = float(values[name]) if values[name] or name != "reserved_gib" else None
        empty = [name for name, value in values.items() if value == ""]
        if empty:
            raise ValueError(f"{empty[0]} is empty: {line}")
        return cls(**values)


def read_ledger(text: str) -> list[LedgerRow]:
    """The rows of the page's table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [LedgerRow.of_line(line) for line in lines[2:]]


def rows_of_proof(file: Path) -> list[LedgerRow]:
    """The rows of a proof.json that `glioma-dist bench gpu` wrote on a GPU: its check of memory, in bf16.

    A line says what was counted and allocated; the one after it, of the same step, what was reserved.
    """
    proof = json.loads(file.read_text())
    metadata = proof["metadata"]
    lines = [line for line in proof["lines"] if line["check"] == "memory"]
    rows = []
    for line, following in pairwise([*lines, {"note": ""}]):
        level, found = ALLOCATED_LINE.fullmatch(line["name"]), COUNTED.search(line["note"])
        if metadata["kind"] != "cuda" or level is None or found is None:
            continue
        encoder, size, counted, allocated = found.groups()
        width, height = size.split("x")
        reserved = RESERVED.search(following["note"])
        rows.append(
            LedgerRow(
                gpu=metadata["device"],
                torch=metadata["versions"]["torch"].partition("+")[0],
                network=f"U-Net {encoder}",
                inputs=f"1x1x{height}x{width}",
                precision="bf16",
                checkpointing=level[1],
                counted_gib=float(counted),
                allocated_gib=float(allocated),
                reserved_gib=None if reserved is None else float(reserved[1]),
                commit=metadata["commit"] or "unknown",
                date=metadata["started"][:10],
                source=file.parent.name,
            )
        )
    return rows
