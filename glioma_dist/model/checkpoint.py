"""Checkpoint folders: model.safetensors, state.json and, where training goes on from it, optimizer.safetensors.

A folder is written whole under a temporary name and then renamed, so that whatever bears the name is whole. Nothing in
it is executable: tensors are safetensors, the rest is JSON. Where each process has a part of every tensor (FSDP2), each
writes a file of its own, as model-00001-of-00002.safetensors: the tensors' rows in the order of the files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glioma_dist.config import TrainConfig
from glioma_dist.config_file import from_dict, to_dict
from glioma_dist.errors import InputError

FORMAT_VERSION = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
STEP = "step"
"""In the files' metadata, so that parts of different checkpoints are not taken for one."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from a folder; tensors are read when asked for."""

    folder: Path
    config: TrainConfig
    facts: dict[str, Any]
    """All else that state.json holds: step, epoch, best score, lineage, fingerprints."""

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Raises InputError where there is no whole checkpoint, or one of a later format."""
        found = find_checkpoint(folder)
        if found is None:
            raise InputError(
                f"{folder}: no checkpoint there (looked for {MODEL} and {STATE}); give a folder as runs/x/best"
            )
        try:
            facts = json.loads((found / STATE).read_text())
            version = facts.pop("format_version")
            config = from_dict(TrainConfig, facts.pop("config"), f"{found / STATE}: config")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{found / STATE}: cannot be read ({error!r}); take another checkpoint") from error
        if version != FORMAT_VERSION:
            raise InputError(
                f"{found / STATE}: format {version!r}, this version reads {FORMAT_VERSION}; update glioma-dist"
            )
        config.model.validate()
        return cls(found, config, facts)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The whole tensors of one of the folder's files, or of its parts. Raises InputError where it is missing or
        damaged."""
        files = find_parts(self.folder, name)
        if not files:
            raise InputError(f"{self.folder / name}: missing, or some of its parts are; take another checkpoint")
        parts = []
        for file in files:
            try:
                with safe_open(file, "pt") as opened:
                    step = (opened.metadata() or {}).get(STEP)
                parts.append(load_file(file))
            except (OSError, SafetensorError) as error:
                raise InputError(f"{file}: cannot be read ({error}); take another checkpoint") from error
            if step is not None and step != self._step:
                raise InputError(f"{file}: is of step {step}, {STATE} of step {self._step}; take another checkpoint")
        if len(parts) == 1:
            return parts[0]
        if any(part.keys() != parts[1].keys() or not part.keys() <= parts[0].keys() for part in parts[1:]):
            raise InputError(f"{self.folder / name}: its parts are of different checkpoints; take another checkpoint")
        return {key: torch.cat([part[key] for part in parts]) if key in parts[1] else parts[0][key] for key in parts[0]}

    @property
    def _step(self) -> str:
        return _step_of(self.facts)

    def load_into(self, model: nn.Module, encoder: str) -> None:
        """Put the checkpoint's weights and buffers into `model`, all of them.

        Raises InputError naming both encoders where they differ, or what else does not fit.
        """
        if self.config.model.encoder != encoder:
            raise InputError(
                f"{self.folder}: its encoder is {self.config.model.encoder}, asked for is {encoder}; "
                f"give --model.encoder {self.config.model.encoder}"
            )
        tensors, wanted = self.tensors(MODEL), model.state_dict()
        wrong = [
            name
            for name in sorted({*tensors, *wanted})
            if name not in tensors or name not in wanted or tensors[name].shape != wanted[name].shape
        ]
        if wrong:
            raise InputError(
                f"{self.folder}: {len(wrong)} tensors do not fit this model, the first is {wrong[0]}; "
                "give the --model settings that its state.json has"
            )
        broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if broken:
            raise InputError(
                f"{self.folder}: {len(broken)} tensors are not finite, the first is {broken[0]}; take another"
            )
        model.load_state_dict(tensors)


def find_checkpoint(folder: Path) -> Path | None:
    """`folder`, or what it was before a write that was killed between its two renames; None where neither is there."""
    for candidate in (folder, _sibling(folder, "old")):
        if (candidate / STATE).is_file() and find_parts(candidate, MODEL):
            return candidate
    return None


def _step_of(facts: dict[str, Any]) -> str:
    """The step that a checkpoint was written at, as each of its files says it, too."""
    return str(facts.get("position", {}).get("step"))


def find_parts(folder: Path, name: str) -> list[Path]:
    """The file `name` of a checkpoint folder, or its parts in their order; none where any is missing."""
    if (folder / name).is_file():
        return [folder / name]
    stem, suffix = name.split(".")
    for first in folder.glob(f"{stem}-00001-of-*.{suffix}"):
        match = re.fullmatch(rf"{stem}-00001-of-(\d{{5}})\.{suffix}", first.name)
        count = int(match[1]) if match else 0
        parts = [folder / part_name(name, number, count) for number in range(count)]
        if parts and all(part.is_file() for part in parts):
            return parts
    return []


def part_name(name: str, number: int, count: int) -> str:
    """Of part `number`, from 0, of `count`: model-00001-of-00002.safetensors."""
    stem, suffix = name.split(".")
    return name if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}.{suffix}"


@dataclass(frozen=True)
class Writer:
    """One of the processes that write a checkpoint together, each its part of the tensors."""

    number: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None
    """Until all of them are here."""


ALONE = Writer()


def write_checkpoint(
    folder: Path,
    config: TrainConfig,
    facts: dict[str, Any],
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor] | None = None,
    writer: Writer = ALONE,
) -> None:
    """Write a checkpoint so that a kill at any moment leaves this one or the one before, whole."""
    new, old = _sibling(folder, "new"), _sibling(folder, "old")
    if writer.number == 0:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    writer.wait()
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
        if tensors is not None:
            file = new / part_name(name, writer.number, writer.count)
            try:
                save_file(tensors, file, {STEP: _step_of(facts)})
            except SafetensorError as error:
                raise InputError(f"{file}: cannot be written ({error}); is there space?") from error
            _sync(file)
    writer.wait()
    if writer.number == 0:
        _finish(folder, new, old, config, facts)
    writer.wait()


def _finish(folder: Path, new: Path, old: Path, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Write what is no tensor, and put the new folder in the old one's place."""
    content = {"format_version": FORMAT_VERSION, **facts, "config": to_dict(config)}
    (new / STATE).write_text(json.dumps(content, indent=2) + "\n")
    for path in (new / STATE, new):
        _sync(path)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(new, folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sibling(folder: Path, suffix: str) -> Path:
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.{suffix}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
