"""A stretch that was computed again, beside what the run has noted of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glioma_dist.errors import one_line
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import EMA, MODEL, OPTIMIZER
from glioma_dist.training.resume import LAST
from glioma_dist.training.step_hashes import Noted, kept_folder, read_noted
from glioma_dist.training.stretch import Stretch

LARGEST_DISTANCE = 0.5
"""Of weights that are compared up to rounding: the distance of the two ends, as a share of the way that the stretch has
moved the weights. Adam turns rounding of small gradients into steps; unrelated stretches are 1 or more apart."""


@dataclass(frozen=True)
class Compared:
    """What came of a stretch. faults: what differs and should not. notes: what else to know."""

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def why_not_bits(start: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """Return what differs between two starts of run.json, so that their bits may differ: nothing where bits are to be
    equal. The version and commit of this package are not looked at: a change of them should change no bit. Nor is the
    number of processes of a run with --reproducible."""
    found = []
    any_number = bool(start.get("reproducible") and again.get("reproducible"))
    for name in ("processes", "engine", "mixed_precision", "threads", "deterministic", "scale", "numerics", "versions"):
        ours, theirs = (_of_results(name, each.get(name), any_number) for each in (again, start))
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += [
                f"{each} {theirs.get(each)} -> {ours.get(each)}"
                for each in sorted({*ours, *theirs})
                if ours.get(each) != theirs.get(each)
            ]
        elif ours != theirs:
            found.append(f"{name} {_shown(theirs)} -> {_shown(ours)}")
    is_gpu = bool((start.get("versions") or {}).get("driver")) and (start.get("versions") or {}).get("cudnn")
    if is_gpu and not start.get("deterministic"):
        found.append("a GPU without --deterministic")
    return found


def code_note(start: dict[str, Any], again: dict[str, Any]) -> str | None:
    """Return a line where the run was trained by other code of this package."""
    told = [((each.get("versions") or {}).get("glioma_dist"), each.get("commit")) for each in (start, again)]
    if told[0] == told[1]:
        return None
    theirs, ours = (f"{version} (commit {commit or 'unknown'})" for version, commit in told)
    return f"code: the run was trained by glioma-dist {theirs}, this is {ours}"


def compare(run: Path, noted: Noted, stretch: Stretch, again: Path, tolerance: float | None) -> Compared:
    """Compare a stretch with what was computed again in the folder `again`. tolerance: relative, of losses; None: bits
    are to be equal."""
    ours, notes = read_noted(again).steps, []
    for step in range(stretch.first + 1, stretch.last + 1):
        theirs = noted.steps[step]
        if theirs["batch"] is None:
            notes.append(f"step {step} has no hash of its batch: the run lost a process there")
        elif theirs["batch"] != ours[step]["batch"]:
            text = (
                f"data: the batch of step {step} is another: its samples, or the code and libraries that prepare them, "
                "have changed"
            )
            if tolerance is None:
                return Compared((text,), tuple(notes))
            notes.append(text)
            break
    differing = [
        step for step in range(stretch.first + 1, stretch.last + 1) if _loss_differs(noted, ours, step, tolerance)
    ]
    if differing:
        step = differing[0]
        since = f"the weights of {kept_folder(run, stretch.first).name}" if stretch.first else "the starting weights"
        text = (
            f"weights or code: the loss of step {step} is {ours[step]['loss']}, the run had "
            f"{noted.steps[step]['loss']}, on the same batches: {since}, or the code that trains, have changed"
        )
        return Compared((text,), tuple(notes))
    fault = _bits_differ(run, stretch, again) if tolerance is None else _too_far(run, stretch, again, notes)
    return Compared((fault,) if fault else (), tuple(notes))


def _loss_differs(noted: Noted, ours: dict[int, dict[str, Any]], step: int, tolerance: float | None) -> bool:
    one, other = ours[step], noted.steps[step]
    if tolerance is None:
        return (one["loss"], one["dice"]) != (other["loss"], other["dice"])
    return abs(one["loss"] - other["loss"]) > tolerance * abs(other["loss"])


def _bits_differ(run: Path, stretch: Stretch, again: Path) -> str | None:
    kept, found = Checkpoint.read(kept_folder(run, stretch.last)), Checkpoint.read(again / LAST)
    for name in (MODEL, OPTIMIZER, EMA):
        hashes = [[each.manifest.files[file]["sha256"] for file in each.manifest.parts(name)] for each in (kept, found)]
        if hashes[0] != hashes[1]:
            theirs, ours = kept.tensors(name), found.tensors(name)
            wrong = [key for key in sorted({*theirs, *ours}) if not _equal(theirs.get(key), ours.get(key))]
            first = f", the first is {one_line(wrong[0], 100)}" if wrong else ""
            return (
                f"weights: {kept.folder / name}: {len(wrong)} tensors are not what these steps give{first}; losses and "
                "batches are equal"
            )
    return None


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return _fits(one, other) and torch.equal(one, other)


def _too_far(run: Path, stretch: Stretch, again: Path, notes: list[str]) -> str | None:
    if not stretch.first:
        notes.append("the weights of the first stretch are compared bit for bit only, so by their losses here")
        return None
    ends = (kept_folder(run, stretch.first), kept_folder(run, stretch.last), again / LAST)
    start, end, found = (Checkpoint.read(each).tensors(MODEL) for each in ends)
    wrong = [name for name in sorted({*end, *found}) if not _fits(end.get(name), found.get(name))]
    if wrong:
        return (
            f"weights: {ends[1]}: {len(wrong)} tensors are not of the network that was trained, the first is "
            f"{one_line(wrong[0], 100)}"
        )
    way, distance = (_distance(one, end) for one in (start, found))
    share = distance / way if way else float(distance > 0)
    notes.append(f"the weights end {share:.1e} of the stretch's way apart")
    if share <= LARGEST_DISTANCE:
        return None
    return f"weights: {ends[1]}: {share:.2f} of the stretch's way from what these steps give"


def _fits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and one.dtype == other.dtype


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    floats = [name for name, tensor in other.items() if tensor.is_floating_point()]
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in floats) ** 0.5


def _of_results(name: str, value: Any, any_number: bool) -> Any:
    """The part of a value that decides results. any_number: whether the number of processes decides nothing."""
    if name == "processes":
        devices = [each.get("device") for each in value or () if isinstance(each, dict)]
        return sorted(set(map(str, devices))) if any_number else devices
    if name == "engine" and any_number:
        return None
    ignored = {"scale": {"timeout_s"}, "versions": {"glioma_dist"}}.get(name, set())
    if name == "scale" and any_number:
        ignored = ignored | {"gradient_accumulation"}
    return {key: each for key, each in value.items() if key not in ignored} if isinstance(value, dict) else value


def _shown(value: Any) -> str:
    return f"{len(value)} x {one_line(value[0], 60)}" if isinstance(value, list) and value else one_line(value, 60)
