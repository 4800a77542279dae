"""The file in the user's cache folder with earlier counts. Does not import torch."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

from glioma_dist.errors import InputError
from glioma_dist.files import read_json, write_json_atomically
from glioma_dist.registry import encoders
from glioma_dist.scale.step_memory import SizeFormula, StepMemory


def read(key: str | None) -> dict | None:
    """What was written for `key`; None if nothing was written, if the file cannot be read, and without a key."""
    return None if key is None else _read_all().get(key)


def read_memory(key: str | None) -> StepMemory | None:
    """Read the memory of a step; None if it is something else."""
    values = read(key)
    if values is None or values.keys() != {part.name for part in fields(StepMemory)}:
        return None
    return StepMemory(**values) if all(type(each) is int and each >= 0 for each in values.values()) else None


def read_formula(key: str | None) -> SizeFormula | None:
    """Read a formula; None if it is something else."""
    try:
        return SizeFormula.of_json(read(key) or {})
    except (ValueError, TypeError, KeyError, OverflowError):  # OverflowError: of an infinite number
        return None


def write(key: str | None, values: dict) -> None:
    """Write `values` for `key`. If the file cannot be written, the same step is counted again next time."""
    if key is None:
        return
    try:
        path = _file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, _read_all() | {key: values}, indent=None, by_several=True)
    except (OSError, InputError, RuntimeError):
        return


def is_own_encoder(name: str) -> bool:
    """Whether the encoder is in the package's table: its code belongs to the package or timm, and tests cover it."""
    return name in encoders.names() and str(encoders.find(name).target).startswith("glioma_dist.")


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glioma-dist" / "step_memory.json"


def _read_all() -> dict[str, dict]:
    try:
        found = read_json(_file())
    except (OSError, ValueError, InputError, RuntimeError):  # RuntimeError: a user without a home
        return {}
    return {key: each for key, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}
