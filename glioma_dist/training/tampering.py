"""What of a run's files is not what the run wrote, as far as they contradict each other: nothing is computed here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import differences, read_config, to_dict
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.training.metrics_file import read_rows
from glioma_dist.training.resume import CONFIG, HASHES, LAST, METRICS
from glioma_dist.training.step_hashes import Noted, kept_folder


def find_changes(run: Path, noted: Noted, steps: Sequence[int]) -> list[str]:
    """Return a line for each thing that was changed after the run wrote it: rows of metrics.jsonl, kept checkpoints,
    config.json. noted: what hashes.jsonl says. steps: kept checkpoints of which every byte is read."""
    return [*_changed_rows(run, noted), *_changed_checkpoints(run, noted, steps), *_changed_config(run, noted)]


def _changed_rows(run: Path, noted: Noted) -> Iterator[str]:
    path = run / METRICS
    try:
        rows = {row["step"]: row for _, row in read_rows(path) if "split" not in row}
    except InputError as error:
        yield f"metrics: {error}"
        return
    for step, expected in noted.steps.items():
        for name in ("loss", "dice"):
            found = rows.get(step, {}).get(name)
            if found != expected[name]:
                yield f"metrics: {path}: {name} of step {step} is {found}, the run noted {expected[name]} in {HASHES}"
                return  # what follows is the same news


def _changed_checkpoints(run: Path, noted: Noted, steps: Sequence[int]) -> Iterator[str]:
    for step, identity in sorted(noted.kept.items()):
        folder = kept_folder(run, step)
        try:
            checkpoint = Checkpoint.read(folder)
            if checkpoint.manifest.identity != identity:
                yield f"weights: {folder} is another checkpoint than the one that the run noted in {HASHES}"
            elif step in steps:
                checkpoint.check()
        except InputError as error:
            yield f"weights: {error}"
    if (run / LAST).is_dir():
        try:
            last = Checkpoint.read(run / LAST)
        except InputError as error:
            yield f"weights: {error}"
            return
        if last.manifest.identity != noted.kept.get(last.step, last.manifest.identity):
            yield f"weights: {run / LAST} is another checkpoint of step {last.step} than the run noted in {HASHES}"


def _changed_config(run: Path, noted: Noted) -> Iterator[str]:
    try:
        told = to_dict(read_config(TrainConfig, run / CONFIG))
        for step in sorted(noted.kept):
            changed = differences(to_dict(Checkpoint.read(kept_folder(run, step)).config), told)
            if changed:
                yield f"config: {run / CONFIG} is not that of {kept_folder(run, step)}: {'; '.join(changed)}"
                return
    except InputError as error:
        yield f"config: {error}"
