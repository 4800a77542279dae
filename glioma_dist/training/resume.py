"""Which checkpoint of a run's folder to resume from, and what the folder has to hold for that."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import differences, to_dict
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_read, read_json
from glioma_dist.model.checkpoint import Checkpoint, find_checkpoint, is_whole, kept_folders
from glioma_dist.model.manifest import EMA, MANIFEST, OPTIMIZER, STATE
from glioma_dist.model.tensor_files import DamagedError
from glioma_dist.training.curves import CURVES
from glioma_dist.training.folder_lock import LOCK
from glioma_dist.training.metrics_file import read_rows
from glioma_dist.training.run_record import DAMAGED, RUN
from glioma_dist.training.state import read_scaler, read_train_state, read_unwritten_rows
from glioma_dist.training.status import MAX_STATUS_BYTES, STATUS
from glioma_dist.training.trackers.names import TRACKED

CONFIG, METRICS, LAST, BEST = "config.json", "metrics.jsonl", "last", "best"
HASHES, STEPS = "hashes.jsonl", "steps"
"""Of runs with --keep-every (step_hashes.py)."""
SCHEDULE_STEPS = "schedule_steps"
"""In a checkpoint's metadata: the steps that its learning-rate schedule extends over, where there is one."""
RESUMABLE = ".resumable"
"""An empty file: last/ was complete here once. Tells a run that lost it from one that ended before its first."""
BEFORE_FIRST_CHECKPOINT = {
    *(CONFIG, METRICS, STATUS, RUN, DAMAGED, LOCK, CURVES, HASHES, STEPS),
    *(*TRACKED, "last.new", "best.new"),
}


class OtherRunError(InputError):
    """The folder is another run's: of other settings, or of other data."""


@dataclass(frozen=True)
class Found:
    """What a process found in a run's folder."""

    checkpoint: Checkpoint | None = None
    """To resume from; None where the run is new."""
    faults: tuple[DamagedError, ...] = ()
    """What is wrong with the checkpoints that are newer."""
    best_fault: str | None = None
    """What is wrong with best/, where the checkpoint says that there is one."""


def check_same_data(config: TrainConfig, checkpoint: Checkpoint, fingerprints: dict[str, str | None]) -> None:
    """Raises OtherRunError if a run was trained on other data than `config` names."""
    if checkpoint.metadata["fingerprints"] != fingerprints:
        raise OtherRunError(
            f"--out {config.out} was trained on other data than {' '.join(config.data.train)} and {config.data.val}; "
            "give the same data, or another --out"
        )


def check_same_schedule(config: TrainConfig, checkpoint: Checkpoint, num_steps: int | None) -> None:
    """Raises OtherRunError if the learning rate would fall over another number of steps than it did so far."""
    before = checkpoint.metadata.get(SCHEDULE_STEPS)
    if before != num_steps:
        raise OtherRunError(
            f"--out {config.out}: its learning rate falls over {before} steps (--lr-schedule {config.lr_schedule}), "
            f"with these flags over {num_steps}; give --schedule-steps {before} to resume, or another --out"
        )


def holds_run(config: TrainConfig) -> bool:
    """Whether `config.out` holds anything of a run.

    Raises InputError where it is no folder, holds other things, or where `--resume never` asks for an empty one.
    """
    out = config.out
    try:
        names = set(os.listdir(out))
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise InputError(f"--out {out}: is a file, or inside one; give a folder") from None
    except OSError as error:
        raise cannot_read(out, error) from error
    if config.resume == "never" and names - {LOCK}:
        also = ", or omit the flag to resume" if CONFIG in names else ""
        raise InputError(f"--resume never: {out} is not empty; give another --out{also}")
    if is_before_first_checkpoint(names):
        return bool(names)
    if CONFIG not in names and not any(find_checkpoint(out / name) for name in (LAST, BEST)):
        raise InputError(f"--out {out} is not empty and holds no run (no {CONFIG}); give another folder")
    return True


def is_before_first_checkpoint(names: set[str]) -> bool:
    """Whether a folder of these names has nothing that a run could resume from, and nothing of anybody else's."""
    return all(name in BEFORE_FIRST_CHECKPOINT or re.fullmatch(r"\..*\.partial", name) for name in names)


def look(config: TrainConfig, is_main: bool = True) -> Found:
    """The newest undamaged checkpoint of the run in `config.out`, and what is wrong with those that are newer.

    Everything in it is read and checked; the first process checks best/ too. Raises InputError where the run has
    other settings, where all checkpoints are damaged, and where they are gone.
    """
    last, faults = config.out / LAST, []
    for folder in kept_folders(last):
        try:
            checkpoint = _read_resumable(folder)
        except DamagedError as error:
            faults.append(error)
            continue
        changed = differences(to_dict(checkpoint.config), to_dict(config))
        if changed:
            raise OtherRunError(
                f"--out {config.out} belongs to another run ({'; '.join(changed)}); give another --out, or the same "
                "settings to resume"
            )
        return Found(checkpoint, tuple(faults), _fault_of_best(config, checkpoint) if is_main else None)
    if faults:
        start = f"start from its weights with --model.init {config.out / BEST} and another --out"
        others = "; ".join(f"{fault.path.parent.name}/{fault.path.name} {fault.fault}" for fault in faults[1:2])
        raise InputError(
            f"{faults[0].path}: {faults[0].fault}; this run has no undamaged checkpoint"
            f"{f' ({others})' if others else ''}; restore one from a copy, or "
            f"{start if is_whole(config.out / BEST) else 'give another --out'}"
        )
    _check_new(config.out)
    return Found()


def _read_resumable(folder: Path) -> Checkpoint:
    """Raises DamagedError for a checkpoint that training cannot resume from."""
    if find_checkpoint(folder) is None:
        raise DamagedError(folder / MANIFEST, "is missing")
    checkpoint = Checkpoint.read(folder)
    read_train_state(checkpoint)
    read_scaler(checkpoint)
    read_unwritten_rows(checkpoint)
    if not isinstance(checkpoint.metadata.get("fingerprints"), dict):
        raise DamagedError(folder / STATE, "says nothing of the data that the run was trained on")
    if not checkpoint.has(OPTIMIZER):
        raise DamagedError(folder / OPTIMIZER, "is not in this checkpoint, which is of the model alone")
    if checkpoint.config.ema_decay is not None and not checkpoint.has(EMA):
        raise DamagedError(folder / EMA, "is not in this checkpoint, whose run keeps an average of its weights")
    checkpoint.check()
    return checkpoint


def _fault_of_best(config: TrainConfig, checkpoint: Checkpoint) -> str | None:
    """What is wrong with best/, where the run has had a best model; None where all is right."""
    folder = config.out / BEST
    if "best_loss" not in checkpoint.metadata["position"]:
        return None
    if find_checkpoint(folder) is None:
        return f"{folder} is missing"
    try:
        best = Checkpoint.read(folder)
        best.check()
    except DamagedError as error:
        return f"{error.path}: {error.fault}"
    changed = differences(to_dict(best.config), to_dict(config))
    if changed or best.metadata.get("fingerprints") != checkpoint.metadata["fingerprints"]:
        return f"{folder} is of another run"
    return None


def _check_new(out: Path) -> None:
    """Raises InputError where `out` has no checkpoint to resume from, but has had one."""
    rows = read_rows(out / METRICS) if (out / METRICS).exists() else []
    val_steps = {row["step"] for _, row in rows if row.get("split") == "val"}
    last_step = max((row["step"] for _, row in rows), default=0)
    best, best_step = find_checkpoint(out / BEST), None
    with suppress(InputError):
        best_step = Checkpoint.read(best).step if best else None
    # best/ is written before last/: a kill between the two, the first time, leaves best/ alone.
    killed_between = best_step is not None and val_steps <= {best_step} and last_step <= best_step
    had_checkpoint = True if (out / RESUMABLE).exists() else _had_checkpoint(out / STATUS)
    if had_checkpoint is None:  # nothing says so
        had_checkpoint = (best is not None or bool(val_steps)) and not killed_between
    if had_checkpoint:
        raise InputError(
            f"--out {out}: the run has no {LAST}/ to resume from, though it has written one; restore it, move {out} "
            "away to start again, or give another --out"
        )


def _had_checkpoint(status: Path) -> bool | None:
    """What status.json says, which is there before the first row of a run; None where it cannot be read."""
    try:
        content = read_json(status, MAX_STATUS_BYTES)
    except InputError:
        return None
    if not isinstance(content, dict) or "checkpoint_step" not in content:
        return None
    return content["checkpoint_step"] is not None
