"""A stretch of a run, computed again: a run of its own in another folder, which resumes from a kept checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from glioma_dist.config import TrainConfig
from glioma_dist.errors import InputError
from glioma_dist.files import link_files, read_json, write_json_atomically
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.checkpoint_writer import file_entry
from glioma_dist.model.manifest import MANIFEST, STATE
from glioma_dist.training.reproducible import ARITHMETIC
from glioma_dist.training.resume import LAST, SCHEDULE_STEPS
from glioma_dist.training.run_record import RUN
from glioma_dist.training.step_hashes import kept_folder


class Stretch(NamedTuple):
    """The steps from `first` + 1 to `last`; the checkpoints of `first` and `last` are kept, or `first` is 0."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"steps {self.first + 1} to {self.last}"


def starts_of(run: Path, stretch: Stretch) -> list[dict[str, Any]]:
    """Return the entries of run.json of the starts that computed these steps. Raises InputError where none says so, or
    one is not as a run writes it."""
    content = read_json(run / RUN)
    starts = content.get("starts") if isinstance(content, dict) else None
    starts = [each for each in starts or () if isinstance(each, dict) and isinstance(each.get("from_step"), int)]
    found: list[dict[str, Any]] = []
    for step in range(stretch.first + 1, stretch.last + 1):
        # A run that resumed further back computed what follows once more.
        owner = next((each for each in reversed(starts) if each["from_step"] < step), None)
        if owner is not None and owner not in found:
            found.append(owner)
    if not found:
        raise InputError(f"{run / RUN}: names no start that computed {stretch}; restore it from a copy")
    for start in found:
        for name in ("scale", "versions"):
            if not isinstance(start.get(name, {}), dict):
                raise InputError(
                    f"{run / RUN}: {name} of the start from step {start['from_step']} is no JSON object; restore it "
                    "from a copy"
                )
    return found


def config_of(
    run: Path, stretch: Stretch, out: Path, train: Sequence[str], start: dict[str, Any] | None
) -> TrainConfig:
    """Return the settings that compute `stretch` in the folder `out`: the run's own, without validation.

    train: folders of the data, where they have moved. start: of run.json; its level of activation checkpointing and its
    tiles are taken, which may be chosen by the GPU. The plan for a memory budget is chosen again.
    """
    checkpoint = Checkpoint.read(kept_folder(run, stretch.last))
    config, known = checkpoint.config, (start or {}).get("scale", {})
    names = ["tile_elements"] if config.scale.memory_budget else ["activation_checkpointing", "tile_elements"]
    chosen = {name: known[name] for name in names if name in known}
    folders = {"train": tuple(train)} if train else {}
    return replace(
        config,
        data=replace(config.data, val=None, **folders),
        scale=replace(config.scale, **chosen),
        schedule_steps=checkpoint.metadata.get(SCHEDULE_STEPS),
        max_steps=stretch.last,
        eval_every=stretch.last,
        patience=None,
        save_every=None,
        save_every_minutes=None,
        keep_last=1,
        keep_every=stretch.last,
        track=(),
        price_per_hour=None,
        out=out,
        stage=None,
        resume="auto",
    )


def put_start(run: Path, stretch: Stretch, out: Path, arithmetic: dict[str, Any] | None) -> None:
    """Give the new folder `out` the checkpoint to resume from: the kept one, as of a run that never validates.

    arithmetic: of a run with --reproducible, as it is here, so that another machine can compute the stretch.
    """
    out.mkdir()
    if stretch.first == 0:
        return
    last = out / LAST
    link_files(kept_folder(run, stretch.first), last)
    state, manifest = read_json(last / STATE), read_json(last / MANIFEST)
    state["position"] = {"step": stretch.first}
    if isinstance(state.get("fingerprints"), dict):  # otherwise the training refuses it
        state["fingerprints"]["val"] = None
    state.pop("unwritten_rows", None)
    if arithmetic is not None:
        state[ARITHMETIC] = arithmetic
    write_json_atomically(last / STATE, state)
    manifest["files"][STATE] = file_entry(last / STATE)
    write_json_atomically(last / MANIFEST, manifest)
