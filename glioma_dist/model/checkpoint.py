"""Checkpoint folders: model.safetensors, state.json, manifest.json and, to resume from, optimizer.safetensors; of a run
that averages its weights, ema.safetensors.

A folder is written under a temporary name and then renamed, so a checkpoint that exists is complete. Nothing in it is
executable: tensors are safetensors, the rest is JSON. Where each process has a part of every tensor (FSDP2), each
writes a file of its own, as model-00001-of-00002.safetensors: the tensors' rows in the order of the files.

Whatever is read is checked against manifest.json first: size, SHA-256, and the tensors' names, shapes and types.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import from_dict
from glioma_dist.config.networks import example_checkpoint, network_folder
from glioma_dist.errors import InputError, UnavailableError, one_line, shown
from glioma_dist.files import cannot_read, parse_json
from glioma_dist.model.manifest import EMA, FORMAT_VERSION, MANIFEST, MODEL, OPTIMIZER, STATE, Manifest
from glioma_dist.model.tensor_files import DamagedError, read_checked, read_tensors
from glioma_dist.registry import UnknownNameError

STATISTICS = "data_statistics"
"""In state.json: `data.image_statistics.TrainingStatistics` of the training images; null where none was looked at."""
HEAD = "decoder.head."
"""How the names of the head's tensors begin."""
MAX_STEP = 10**12
"""More optimizer steps than any run takes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from a folder; tensors are read when asked for."""

    folder: Path
    config: TrainConfig
    metadata: dict[str, Any]
    """All else that state.json holds: position, lineage, fingerprints."""
    manifest: Manifest
    _kept: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Read all but the tensors.

        Raises InputError where there is no checkpoint, or one of another format, and DamagedError where manifest.json
        or state.json is missing or is not what was written.
        """
        found = find_checkpoint(folder)
        if found is None:
            raise InputError(
                f"{folder}: no checkpoint there (no {MANIFEST}); give a checkpoint folder, for example "
                f"{example_checkpoint(folder)}"
            )
        manifest = Manifest.read(found)
        with _not_replaced(manifest):
            data = read_checked(found / STATE, manifest.files[STATE])
        config, metadata = _read_state(found / STATE, data)
        return cls(found, config, metadata, manifest)

    @property
    def step(self) -> int | None:
        """Optimizer steps taken; None where the checkpoint is not of a training run."""
        return self.metadata.get("position", {}).get("step")

    @property
    def lineage(self) -> list[dict[str, str]]:
        """What weights and data the network was made from, with their licences."""
        return self.metadata.get("lineage", [])

    def has(self, name: str) -> bool:
        """Whether it holds `name`, MODEL, OPTIMIZER or EMA, in one file or in parts."""
        return bool(self.manifest.parts(name))

    def note_on_weights(self, raw: bool) -> str | None:
        """Which weights `load_into` takes, in a line for the user; None where there is no choice."""
        if self.has(EMA):
            taken = "the weights as the optimizer left them" if raw else "the moving average of the weights"
            return f"{self.folder}: using {taken}{'' if raw else ' (--raw-weights: the weights themselves)'}"
        return f"{self.folder}: --raw-weights has no effect: it has no moving average of its weights" if raw else None

    def check(self) -> None:
        """Read and check every file now. The tensors are kept until `tensors` takes them, so nothing is read twice.

        Raises DamagedError.
        """
        self._kept.update({name: self._read(name) for name in (MODEL, OPTIMIZER, EMA) if self.has(name)})

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Full tensors of MODEL, OPTIMIZER or EMA, on the CPU. Raises DamagedError where they cannot be used."""
        return self._kept.pop(name) if name in self._kept else self._read(name)

    def _read(self, name: str) -> dict[str, Tensor]:
        files = self.manifest.parts(name)
        if not files:
            raise DamagedError(self.folder / name, "is not in this checkpoint", "give one that has it, as runs/x/last")
        with _not_replaced(self.manifest):
            parts = [read_tensors(self.folder / file, self.manifest.files[file]) for file in files]
        if len(parts) == 1:
            return parts[0]
        if any(part.keys() != parts[1].keys() or not part.keys() <= parts[0].keys() for part in parts[1:]):
            raise DamagedError(self.folder / name, "its parts hold different tensors")
        return {key: torch.cat([part[key] for part in parts]) if key in parts[1] else parts[0][key] for key in parts[0]}

    def load_into(self, model: nn.Module, encoder: str, raw: bool = False, *, keep_head: bool = False) -> None:
        """Put the checkpoint's weights and buffers into `model`, all of them: their moving average where the run has
        kept one, and the weights as the optimizer left them where not, or with `raw`. With `keep_head` all but the
        head, which stays as the model has it.

        Raises InputError naming both encoders where they differ, or what else does not fit.
        """
        if self.config.model.encoder != encoder:
            raise InputError(
                f"{self.folder}: its encoder is {self.config.model.encoder}, asked for is {encoder}; "
                f"give --model.encoder {self.config.model.encoder}"
            )
        tensors, wanted = self.tensors(MODEL if raw or not self.has(EMA) else EMA), model.state_dict()
        if keep_head:
            tensors |= {name: tensor for name, tensor in wanted.items() if name.startswith(HEAD)}
        wrong = [
            name
            for name in sorted({*tensors, *wanted})
            if name not in tensors
            or name not in wanted
            or tensors[name].shape != wanted[name].shape
            or tensors[name].is_floating_point() != wanted[name].is_floating_point()
        ]
        if wrong:
            raise InputError(
                f"{self.folder}: {len(wrong)} tensors do not fit this model, the first is {one_line(wrong[0], 100)}; "
                "give the --model settings that its state.json has"
            )
        model.load_state_dict(tensors)


def find_checkpoint(folder: Path) -> Path | None:
    """`folder`, or what it was before a write that was killed between its renames; where there is neither, the network
    of the package that has this name; None where there is none of them. Raises InputError where this user may not look.
    """
    before = sibling(folder, "1") if folder.absolute().name else folder  # nothing lies beside /
    try:
        for found in (folder, before, folder):  # a training may rename them between two looks
            if any((found / name).is_file() for name in (MANIFEST, STATE)) and not (
                found is before and folder.exists()
            ):
                return found
        return network_folder(folder)
    except OSError as error:
        raise cannot_read(folder, error) from None


def kept_folders(folder: Path) -> list[Path]:
    """The checkpoints that were written as `folder` and are there, the newest first: last, last.1, last.2, …

    What only has such a name, as a file or a link to nothing, is one of them: a damaged one.
    """
    pattern = re.compile(rf"{re.escape(folder.name)}\.\d{{1,9}}")
    numbered = [path for path in folder.parent.glob("*") if pattern.fullmatch(path.name)]
    ordered = [folder, *sorted(numbered, key=lambda path: int(path.suffix[1:]))]
    return [path for path in ordered if os.path.lexists(path)]


def sibling(folder: Path, suffix: str) -> Path:
    """The folder beside `folder` that is named as it and `suffix`: last.new, last.1."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.{suffix}")


@contextmanager
def naming_another(folder: Path) -> Iterator[None]:
    """Where the checkpoint in `folder` turns out to be damaged, the error names an undamaged one of the same run."""
    try:
        yield
    except DamagedError as error:
        run = folder.absolute().parent
        for other in (*kept_folders(run / "last"), run / "best"):
            if other != error.path.parent.absolute() and is_whole(other):
                advice = f"restore it from a copy, or give {other}, which is undamaged"
                raise DamagedError(error.path, error.fault, advice) from error
        raise


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is there and everything in it is as it was written."""
    try:
        Checkpoint.read(folder).check()
    except InputError:
        return False
    return True


@contextmanager
def _not_replaced(manifest: Manifest) -> Iterator[None]:
    """Raises UnavailableError in place of DamagedError where the run replaced the folder while it was read."""
    try:
        yield
    except DamagedError as error:
        try:
            same = Manifest.read(manifest.folder).identity == manifest.identity
        except InputError:
            same = False
        if same or (manifest.folder.is_dir() and not (manifest.folder / MANIFEST).exists()):
            raise
        raise UnavailableError(
            f"{manifest.folder}: was replaced by a newer checkpoint while it was read; run the same command again"
        ) from error


def _read_state(path: Path, data: bytes) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings and all else of state.json. Raises DamagedError or InputError for what no run writes."""
    try:
        content = parse_json(data, path)
    except InputError as error:
        raise DamagedError(path, str(error).removeprefix(f"{path}: ")) from None
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise DamagedError(path, f"is no state of format {FORMAT_VERSION}")
    metadata = {name: value for name, value in content.items() if name not in ("format_version", "config")}
    position, lineage = metadata.get("position", {}), metadata.get("lineage", [])
    step = position.get("step", 0) if isinstance(position, dict) else None
    if type(step) is not int or not 0 <= step <= MAX_STEP:
        raise DamagedError(path, f"its position has no step from 0 to {MAX_STEP} ({shown(position)})")
    odd = next((name for name, value in position.items() if not _is_number(value)), None)
    if odd is not None:
        raise DamagedError(path, f"its position's {one_line(odd, 60)} is {shown(position[odd])}")
    if not isinstance(lineage, list) or not all(map(_is_origin, lineage)):
        raise DamagedError(path, f"its lineage is no list of sources with licences ({shown(lineage)})")
    try:
        config = from_dict(TrainConfig, content.get("config"), f"{path}: config")
        config.model.validate()
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{path}: {one_line(error, 250)}; install what adds it, or register it, as for the run that wrote this"
        ) from None
    except InputError as error:
        text = one_line(str(error).removeprefix(f"{path}: "), 250)
        raise DamagedError(path, f"cannot be used ({text})") from None
    return config, metadata


def _is_origin(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values())


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
