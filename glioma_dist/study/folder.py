"""The folder of a study: one start at a time prepares it, and its settings hold for every later start."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glioma_dist.errors import InputError
from glioma_dist.files import read_json, write_json_atomically
from glioma_dist.study.plan import Settings

SETTINGS = "study.json"
"""In the study's folder: what decided its numbers."""


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Of several studies that start in one folder each waits for the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def settings_text(settings: Settings) -> dict[str, Any]:
    """What decides a study's numbers, to be held against that of an earlier start in the same folder."""
    chosen = asdict(settings)
    for name in ("out", "source", "recompute", "workers"):
        chosen.pop(name)
    return json.loads(json.dumps(chosen))


def hold_settings(folder: Path, chosen: dict[str, Any]) -> bool:
    """Write down what decides a study's numbers; whether it was not there yet.

    Raises InputError where the folder holds a study of other settings or of other images.
    """
    path = folder / SETTINGS
    if not path.exists():
        write_json_atomically(path, chosen)
        return True
    before = read_json(path)
    if not isinstance(before, dict):
        raise InputError(f"{path}: holds no settings of a study; remove it, or give another --out")
    changed = [
        f"{name} {before[name]} -> {value}"
        for name, value in chosen.items()
        if before.get(name) is not None and value is not None and before[name] != value
    ]
    if changed:
        raise InputError(
            f"--out {folder}: holds a study with other settings ({'; '.join(changed)}); give the same, or another --out"
        )
    return False
