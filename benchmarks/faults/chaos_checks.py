"""What has to hold after a fault, and when a run is finished."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from chaos_inflict import Inflicted
from chaos_recording import Delivered
from chaos_starts import BATCH, IMAGES, STEPS, Ended
from run_contents import names, rows, tensors

FINISHED, USER_ERROR, UNAVAILABLE, STOPPED, KILLED, TERMINATED = 0, 2, 69, 75, -9, -15
MAX_LINE = 500
MOST_BATCHES_LATER = 4
"""That a training may take after a signal to it, or after the end of its launcher."""
TEMPORARY = re.compile(r"\.(partial|new|old|tmp)$|^ballast$")
VALIDATION_TOLERANCE = 1e-12
"""Of a validation's means: a change of the number of processes may come between a step and its validation."""


def faults_of_end(inflicted: Inflicted, ended: Ended) -> list[str]:
    """What is wrong with how a start ended after a fault."""
    wrong = []
    if ended.traceback:
        wrong.append("a traceback")
    wrong += [f"a line of {len(line)} characters" for line in ended.lines if len(line.partition(": ")[2]) > MAX_LINE]
    fault = inflicted.fault
    if fault.launcher is not None:
        return wrong + _faults_of_launch(inflicted, ended)
    allowed = _codes(inflicted)
    for rank, code in enumerate(ended.codes):
        victim = rank in inflicted.victims and fault.kind in ("rank", "checkpoint") and allowed["victim"]
        expected = {*(victim or allowed["others"]), FINISHED}
        if code not in expected:
            wrong.append(f"process {rank} ended with {code}, not with one of {sorted(expected)}")
    told = [code for code in ended.codes if code > 0]
    if told and not ended.lines:
        wrong.append("no line says why")
    return wrong


def faults_of_going_on(inflicted: Inflicted, records: Iterable[Delivered]) -> list[str]:
    """Whether a training went on after it was asked to stop, or after its launcher or another process was killed."""
    if inflicted.fault.kind not in ("rank", "launcher") or not inflicted.happened.is_set():
        return []
    at = time.time() - (time.monotonic() - inflicted.at)
    later = max(Counter(each.rank for each in records if each.at > at).values(), default=0)
    return [f"{later} more batches after the fault: the training continues"] if later > MOST_BATCHES_LATER else []


def _codes(inflicted: Inflicted) -> dict[str, set[int]]:
    """The exit codes that are right, of the process that was signalled and of the others."""
    fault = inflicted.fault
    early = fault.moment == "start"
    # A process that is asked to stop while it starts cannot agree with others that it has not met yet.
    asked = {STOPPED, UNAVAILABLE, TERMINATED} if early else {STOPPED}
    if fault.kind == "rank":
        killed = fault.variant == "SIGKILL"
        return {"victim": {KILLED} if killed else asked, "others": {UNAVAILABLE} if killed else asked}
    if fault.kind == "checkpoint":
        return {"victim": {KILLED}, "others": asked}
    if fault.kind == "store":
        return {"victim": set(), "others": {UNAVAILABLE} if inflicted.is_long_outage else {STOPPED}}
    return {"victim": set(), "others": {"worker": {UNAVAILABLE}, "disk": {USER_ERROR}}[fault.kind]}


def _faults_of_launch(inflicted: Inflicted, ended: Ended) -> list[str]:
    """A launcher has codes of its own: status.json says how the run ended."""
    fault, state = inflicted.fault, ended.state or {}
    found = (state.get("state"), state.get("code"))
    if fault.moment == "start" or found == ("finished", 0):
        return []  # the first process may not have got as far as writing it
    if ended.codes == (0,):
        return ["the launcher ended with 0, and the run is not finished"]
    killed = ("running", None)
    stopped, lost = ("stopped", STOPPED), ("failed", UNAVAILABLE)
    right = {
        # torchrun asks the others to stop as soon as one has ended; what they notice first is a matter of time.
        "rank": {lost, stopped, killed} if fault.variant == "SIGKILL" else {stopped},
        "worker": {lost, stopped},
        "launcher": {lost, stopped, killed} if fault.variant == "SIGKILL" else {stopped},
        "disk": {("failed", USER_ERROR), killed},
        "checkpoint": {stopped, killed},
        "store": {lost, stopped},
    }[fault.kind]
    return [] if found in right else [f"status.json says {found}, not one of {sorted(right, key=str)}"]


def effective(records: Iterable[Delivered]) -> dict[int, dict[int, Delivered]]:
    """Step -> rank -> what was delivered by the last start that took this step: the one that the weights come from."""
    found: dict[int, dict[int, Delivered]] = {}
    for each in records:
        if each.step in found and next(iter(found[each.step].values())).start != each.start:
            found[each.step] = {}
        found.setdefault(each.step, {})[each.rank] = each
    return {step: ranks for step, ranks in found.items() if step <= STEPS}


def segments(records: Sequence[Delivered]) -> tuple[tuple[int, int], ...]:
    """(number of processes, last step) of each stretch of steps that one number of processes took."""
    used = [(step, next(iter(ranks.values())).processes) for step, ranks in sorted(effective(records).items())]
    return tuple((number, max(step for step, _ in group)) for number, group in groupby(used, lambda each: each[1]))


def faults_of_order(records: Sequence[Delivered], undisturbed: Sequence[Delivered]) -> list[str]:
    """What is wrong with the samples that a run used: each step has its samples once, in the slots in which an
    undisturbed run had them, with the same pixels; and each epoch has each image once."""
    wrong = []
    used, expected = effective(records), _batches(effective(undisturbed))
    if sorted(used) != list(range(1, STEPS + 1)):
        return [f"steps that no start delivered: {sorted(set(range(1, STEPS + 1)) - set(used))}"]
    batches = _batches(used)
    wrong += [
        f"step {step}: {batches[step]} instead of {expected[step]}" for step in used if batches[step] != expected[step]
    ]
    per_epoch = IMAGES // BATCH
    for first in range(1, STEPS + 1, per_epoch):
        counts = Counter(key for step in range(first, first + per_epoch) for key, _ in batches[step])
        if sorted(counts.values()) != [1] * IMAGES:
            wrong.append(f"steps {first} to {first + per_epoch - 1} used samples {dict(counts)} times")
    # Also what was delivered and then lost with its start.
    for each in records:
        share = BATCH // each.processes
        if each.step <= STEPS and each.samples != expected[each.step][each.rank * share : (each.rank + 1) * share]:
            wrong.append(f"start {each.start}, step {each.step}, process {each.rank}: other samples")
    return wrong


def _batches(used: dict[int, dict[int, Delivered]]) -> dict[int, tuple[tuple[str, int], ...]]:
    """Step -> the samples of the whole batch in the order of its slots."""
    return {step: sum((ranks[rank].samples for rank in sorted(ranks)), ()) for step, ranks in used.items()}


def faults_of_run(out: Path, reference: Path, has_changed: bool) -> list[str]:
    """What differs between a finished run and its reference. has_changed: whether the number of processes did."""
    wrong = []
    found, expected = tensors(out), tensors(reference)
    if sorted(found) != sorted(expected):
        wrong.append("other tensors")
    else:
        wrong += [f"other bits in {name}" for name in expected if found[name] != expected[name]][:5]
    if not _same_rows(rows(out), rows(reference), VALIDATION_TOLERANCE if has_changed else 0):
        wrong.append("other rows in metrics.jsonl")
    left = [str(path.relative_to(out)) for path in out.rglob("*") if TEMPORARY.search(path.name)]
    if left:
        wrong.append(f"temporary names: {left}")
    if names(out) != names(reference):
        wrong.append(f"other names: {sorted(set(names(out)) ^ set(names(reference)))}")
    return wrong


def _same_rows(found: list[dict], expected: list[dict], tolerance: float) -> bool:
    def same(name: str, one: object, other: object, is_validation: bool) -> bool:
        if not tolerance or not is_validation or name not in ("loss", "dice"):
            return one == other
        return abs(one - other) <= tolerance

    return len(found) == len(expected) and all(
        row.keys() == other.keys() and all(same(name, row[name], other[name], "split" in other) for name in other)
        for row, other in zip(found, expected, strict=True)
    )
