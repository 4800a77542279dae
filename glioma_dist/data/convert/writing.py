"""The end of every conversion: samples to shards, the audit's file, and what is printed."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from glioma_dist.data.convert.audit import Audit
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.index import INDEX_NAME
from glioma_dist.data.shards.reader import ShardWriter
from glioma_dist.data.splits import WHOLE
from glioma_dist.errors import InputError, printable
from glioma_dist.wording import counted

AUDIT_NAME = "audit.json"
NUM_NAMES = 5
"""Of groups, or of files without a partner, that the screen names; audit.json has all."""
Job = TypeVar("Job")


def refuse_other_division(out: Path, names: Sequence[str]) -> None:
    """Raise InputError where `out` holds the same images divided in another way: whole, or drawn into splits."""
    found = {path.parent.name for path in out.glob(f"*/{INDEX_NAME}")}
    others = sorted(found - set(names))
    if others and WHOLE in {*names, *found}:
        raise InputError(
            f"{out}: holds {', '.join(others)} of another conversion, which may have the same images as "
            f"{', '.join(names)}; remove it, or give another --out"
        )


def write_samples(writer: ShardWriter, writers: contextlib.ExitStack, samples: Iterable[Sample]) -> int:
    """Write one split's samples, to be renamed when `writers` closes; nothing where there is none. Returns their
    number."""
    samples = iter(samples)
    first = next(samples, None)
    if first is None:
        return 0
    writers.enter_context(writer)
    num_samples = 0
    for sample in itertools.chain([first], samples):
        writer.write(sample)
        num_samples += 1
    return num_samples


def finish(out: Path, audit: Audit, written: Mapping[str, int], console: Console) -> None:
    """Write the audit and print its summary, for each split how many samples were written, and the command that shows
    them."""
    audit.write(out / AUDIT_NAME)
    audit.show(console, out / AUDIT_NAME)
    for name, count in written.items():
        where = printable(out / name) if count else "not written: no sample of it could be converted"
        console.print(f"{name}: {counted(count, 'sample')}, {where}", markup=False, highlight=False, soft_wrap=True)
    if any(written.values()):
        folder = shlex.quote(printable(out))
        line = f"look at the data: glioma-dist shards report {folder} --out {folder}.html"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def tell_groups(groups: Sequence[str], console: Console) -> None:
    """Print the first groups, each with its number of samples, so that a pattern that finds something else is seen.

    groups: that of each sample.
    """
    found = sorted(Counter(groups).items())
    named = [f"{name} ({count_of(number, 'sample')})" for name, number in found[:NUM_NAMES]]
    more = f" and {len(found) - NUM_NAMES} more" if len(found) > NUM_NAMES else ""
    line = f"{count_of(len(found), 'group')}: {', '.join(named)}{more}"
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def count_of(number: int, word: str) -> str:
    """A number of things in words: 1 image, 2 images."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def with_progress(jobs: list[Job], label: str, console: Console) -> Iterator[Job]:
    """Hand on the jobs, with a bar on a terminal and about ten plain lines elsewhere."""
    if console.is_terminal:
        yield from track(jobs, description=label, console=console)
        return
    start, step = time.monotonic(), max(50, len(jobs) // 10)
    for number, job in enumerate(jobs, 1):
        yield job
        if number % step == 0 or number == len(jobs):
            rate = number / max(time.monotonic() - start, 1e-9)
            console.print(f"{label}: {number}/{len(jobs)} images, {rate:.0f}/s", highlight=False)
