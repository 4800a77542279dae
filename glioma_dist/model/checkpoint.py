"""Checkpoint folders: model.safetensors, state.json and, where training goes on from it, optimizer.safetensors.

A folder is written whole under a temporary name and then renamed, so that whatever bears the name is whole. Nothing in
it is executable: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glioma_dist.config import TrainConfig
from glioma_dist.config_file import from_dict, to_dict
from glioma_dist.errors import InputError

FORMAT_VERSION = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


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
        """The tensors of one of the folder's files. Raises InputError where it is missing or damaged."""
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.folder / name}: cannot be read ({error}); take another checkpoint") from error

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
        if (candidate / MODEL).is_file() and (candidate / STATE).is_file():
            return candidate
    return None


def write_checkpoint(
    folder: Path,
    config: TrainConfig,
    facts: dict[str, Any],
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint so that a kill at any moment leaves this one or the one before, whole."""
    new, old = _sibling(folder, "new"), _sibling(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(model, new / MODEL)
    if optimizer is not None:
        save_file(optimizer, new / OPTIMIZER)
    content = {"format_version": FORMAT_VERSION, **facts, "config": to_dict(config)}
    (new / STATE).write_text(json.dumps(content, indent=2) + "\n")
    for path in (*new.iterdir(), new):
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
