"""The folder of a run: whether it may be gone on with, and that one training at a time writes there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glioma_dist.config import TrainConfig
from glioma_dist.config_file import differences, read_config, to_dict
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint, find_checkpoint


@contextmanager
def one_writer(out: Path) -> Iterator[None]:
    """Hold the folder for one training; the system lets go of it when the process ends, however it ends.

    Raises InputError where another training holds it.
    """
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise InputError(f"--out {out}: another training is writing there; wait for it, or give another") from error
    try:
        yield
    finally:
        os.close(folder)


def open_run(config: TrainConfig) -> Checkpoint | None:
    """The checkpoint to go on from, or None where the run is new.

    Raises InputError where `config.out` holds a run with other settings, or anything but a run.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if not found or (config.resume == "auto" and found <= {"config.json", "metrics.jsonl"}):
        return None  # nothing, or a run that ended before its first checkpoint
    if config.resume == "never":
        raise InputError(f"--resume never: {out} is not empty; give another --out, or leave the flag away to go on")
    if not (out / "config.json").is_file():
        raise InputError(f"--out {out} is not empty and holds no run (no config.json); give another folder")
    old = read_config(TrainConfig, out / "config.json")
    changed = differences(to_dict(old), to_dict(config))
    if changed:
        raise InputError(
            f"--out {out} belongs to another run ({'; '.join(changed)}); give another --out, or the same "
            "settings to go on"
        )
    last = out / "last"
    if find_checkpoint(last) is None and not {"last", "last.old"} & found:
        return None  # a run that ended before its first checkpoint
    return Checkpoint.read(last)
