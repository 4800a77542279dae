"""The folder of a study: one start at a time prepares it, and its settings hold for every later start."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from glioma_dist.errors import InputError
from glioma_dist.files import cannot_write, make_folder, read_json, remove_quietly, write_json_atomically
from glioma_dist.reproduction.plan import Settings
from glioma_dist.training.folder_lock import LOCK, NO_LOCKS

SETTINGS = "study.json"
"""In the study's folder: what decided its numbers."""


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Of several studies that start in one folder each waits for the one before."""
    was_there = os.path.exists(folder)
    make_folder(folder)
    # Not a file whose existence is the lock, where the file system has no others: a killed start would hold it forever.
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock)
        except (OSError, NotImplementedError) as error:  # some network file systems have no locks
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise cannot_write(folder / LOCK, error) from error
        try:
            yield
        except BaseException:
            if not was_there and [each.name for each in folder.iterdir()] == [LOCK]:  # nothing was begun
                remove_quietly(folder / LOCK)
                folder.rmdir()
            raise


@contextlib.contextmanager
def held_run(folder: Path) -> Iterator[bool]:
    """Hold the folder of a run, which is made. Yields False if another start of the study holds it.

    The system lets go of the lock when the process ends, however it ends. Where a file system has no locks, two starts
    can make the same run; a training then refuses the second in its own folder, if it can.
    """
    make_folder(folder)
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock.acquire(timeout=0))
        except Timeout:
            yield False
            return
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise cannot_write(folder / LOCK, error) from error
        yield True


def settings_text(settings: Settings) -> dict[str, Any]:
    """What decides a study's numbers, to be held against that of an earlier start in the same folder."""
    chosen = asdict(settings)
    for name in ("out", "source", "activation_checkpointing", "workers"):
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
    try:
        before = read_json(path)
    except InputError as error:
        fault = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: is damaged ({fault}); remove it, or give another --out") from None
    if not isinstance(before, dict):
        raise InputError(f"{path}: is damaged (no object of settings); remove it, or give another --out")
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
