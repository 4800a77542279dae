"""hashes.jsonl: what a run with --keep-every notes, so that any stretch of it can be computed again and compared.

A row for each step: SHA-256 of its batch, its loss and its Dice. A row for each kept checkpoint: SHA-256 of its
manifest, and so of all its files. Each row has a hash of itself and of all rows before it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from glioma_dist.errors import InputError, RunError
from glioma_dist.model.checkpoint_writer import Writer
from glioma_dist.model.manifest import MANIFEST, Manifest
from glioma_dist.training.metrics_file import MetricsFile, read_rows
from glioma_dist.training.resume import HASHES, STEPS

CHAIN = "chain"
"""Of a row: its own hash."""
KEPT = "manifest"
"""Of the row of a kept checkpoint: SHA-256 of its manifest."""


def kept_folder(out: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of a step for good."""
    return out / STEPS / f"{step:06d}"


class StepHashes:
    """Collects the hashes of a run's steps on every process, and writes them on the first one before each `last`."""

    def __init__(self, out: Path, check: Callable[[], None], has_share: bool = True) -> None:
        """check: called before each write, as in `Reporter`. has_share: whether this process's digests count; of the
        processes that share images only one's do."""
        self._out, self._check, self._has_share = out, check, has_share
        self._steps: list[tuple[int, float, float]] = []
        self._digests: list[tuple[bytes, ...]] = []
        self._file: MetricsFile | None = None
        self._chain = ""

    def begin(self, resume_step: int) -> None:
        """Open the file, on the first process. Rows after `resume_step` are removed. Raises InputError."""
        self._file = MetricsFile(self._out / HASHES, resume_step, self._check)
        rows, self._file.kept = self._file.kept, []
        self._chain = str(rows[-1].get(CHAIN, "")) if rows else ""
        is_noted = any(row["step"] == resume_step and KEPT in row for row in rows)
        if not is_noted and (kept_folder(self._out, resume_step) / MANIFEST).is_file():
            self.keep(resume_step)  # the run was killed after it had written this, and before it noted it

    def close(self) -> None:
        """Raises InputError where the disk is full."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                file.catch_up()

    def add(self, step: int, digests: tuple[bytes, ...], loss: float, dice: float) -> None:
        """Note a finished step. digests: of this process's samples."""
        self._steps.append((step, loss, dice))
        self._digests.append(digests if self._has_share else ())

    def save(self, writer: Writer, alone: bool) -> None:
        """Write the rows of all steps since the last call. All processes call it, unless `alone`: then the rows have no
        hash of their batches, of which other processes had a part.

        Raises RunError on all processes where the first cannot write.
        """
        shares = writer.together(lambda: self._digests)
        steps, self._steps, self._digests = self._steps, [], []
        batches = [b"".join(sum(parts, ())) for parts in zip(*shares, strict=True)]
        hashes = [None if alone else hashlib.sha256(each).hexdigest() for each in batches]

        def write() -> None:
            for (step, loss, dice), batch in zip(steps, hashes, strict=True):
                self._add_row(step=step, batch=batch, loss=loss, dice=dice)
            if self._file is not None:
                self._file.catch_up()

        writer.together(write)

    def keep(self, step: int) -> None:
        """Note that the checkpoint of a step is kept. What cannot be written now is written with the next rows."""
        if self._file is not None:
            self._add_row(step=step, manifest=Manifest.read(kept_folder(self._out, step)).identity)
            with suppress(RunError):
                self._file.catch_up()

    def _add_row(self, **row: Any) -> None:
        if self._file is not None:
            self._chain = link(self._chain, row)
            self._file.unwritten.append({**row, CHAIN: self._chain})


def cut_hashes(out: Path, resume_step: int, check: Callable[[], None]) -> None:
    """Remove the rows after `resume_step` of a run that resumes without --keep-every. Raises InputError."""
    if (out / HASHES).exists():
        with MetricsFile(out / HASHES, resume_step, check):
            pass


def link(before: str, row: dict[str, Any]) -> str:
    """The hash of a row without its own hash, and of the one before."""
    return hashlib.sha256(f"{before}{json.dumps(row, sort_keys=True)}".encode()).hexdigest()


@dataclass(frozen=True)
class Noted:
    """What hashes.jsonl says."""

    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Step -> batch, loss, dice."""
    kept: dict[int, str] = field(default_factory=dict)
    """Step of a kept checkpoint -> SHA-256 of its manifest."""
    chain: str = ""
    """Hash of the whole file."""

    def stretches(self) -> list[tuple[int, int]]:
        """First and last step of each part of the run that can be computed again: from the start, or from a kept
        checkpoint, to the next one; all steps between are noted. The first step is one whose checkpoint is there."""
        ends = [0, *sorted(self.kept)]
        pairs = pairwise(ends)
        return [(a, b) for a, b in pairs if all(step in self.steps for step in range(a + 1, b + 1))]


def read_noted(out: Path) -> Noted:
    """Read hashes.jsonl of a run. Raises InputError where there is none, or where a row is not what the run wrote."""
    path = out / HASHES
    if not path.exists():
        raise InputError(f"{path}: is missing; only a run that was trained with --keep-every can be verified")
    noted, chain = Noted(), ""
    for number, (_, row) in enumerate(read_rows(path), 1):
        content = {name: value for name, value in row.items() if name != CHAIN}
        chain = link(chain, content)
        if row.get(CHAIN) != chain:
            raise InputError(
                f"{path}: line {number} (step {row['step']}) is not what the run wrote: its hash does not match; "
                "restore the file from a copy"
            )
        if not _is_noted(content):  # hashes that fit can be made by anybody
            raise InputError(
                f"{path}: line {number} (step {row['step']}) is no row that a run writes; restore the file from a copy"
            )
        if KEPT in content:
            noted.kept[row["step"]] = content[KEPT]
        else:
            noted.steps[row["step"]] = content
    return Noted(noted.steps, noted.kept, chain)


def _is_noted(row: dict[str, Any]) -> bool:
    """Whether a row has the values of a kept checkpoint, or of a step: what is not finite would equal any number."""
    if KEPT in row:
        return isinstance(row[KEPT], str)
    has_batch = "batch" in row and isinstance(row["batch"], str | None)
    return has_batch and all(
        isinstance(row.get(name), int | float) and math.isfinite(row[name]) for name in ("loss", "dice")
    )
