"""`glioma-dist verify`: random stretches of a run, from one kept checkpoint to the next, are computed again.

Nothing in the run's folder is written to.
"""

from __future__ import annotations

import io
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import read_config
from glioma_dist.config.verify import VerifyConfig
from glioma_dist.data.mixture import open_training_data
from glioma_dist.data.worker_pool import WorkerPool
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.own_context import given_or_own
from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.errors import InputError, RunError, StopRequested, one_line
from glioma_dist.files import read_json
from glioma_dist.loss_terms import own_functions
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.training.comparison import Compared, code_note, compare, why_not_bits
from glioma_dist.training.folder_lock import is_held
from glioma_dist.training.loop import train
from glioma_dist.training.reproducible import ARITHMETIC, changes, describe_arithmetic, fixed_cpu_arithmetic
from glioma_dist.training.resume import CONFIG, LAST
from glioma_dist.training.run_record import RUN
from glioma_dist.training.step_hashes import Noted, kept_folder, read_noted
from glioma_dist.training.stretch import Stretch, config_of, put_start, starts_of
from glioma_dist.training.tampering import find_changes

Result = TypeVar("Result")


@dataclass(frozen=True)
class VerifyResult:
    """stretches: that were computed again, and are as the run wrote them. num_stretches: of the run. chain: the hash of
    all that the run has noted."""

    stretches: tuple[Stretch, ...]
    num_stretches: int
    chain: str


def read_settings(config: VerifyConfig) -> TrainConfig:
    """Return the settings of the run. Raises InputError where they cannot be read, or name code that the flags do
    not."""
    path = Path(config.run) / CONFIG
    if not path.exists():
        raise InputError(f"RUN {config.run}: has no {CONFIG}; give the --out of a training with --keep-every")
    settings = read_config(TrainConfig, path)
    own = own_functions(settings.loss)
    if (own or config.loss is not None) and config.loss != settings.loss:
        what = f"it names code ({one_line(', '.join(own), 100)}): " if own else ""
        raise InputError(
            f"RUN {config.run}: was trained with --loss {one_line(settings.loss, 150)}; {what}give the same --loss to "
            "have it run"
            if own
            else f"--loss {one_line(config.loss, 100)}: RUN {config.run} was trained with --loss "
            f"{one_line(settings.loss, 100)}; omit the flag"
        )
    return settings


def verify(
    config: VerifyConfig, context: DistributedContext | None = None, workers: WorkerPool | None = None
) -> VerifyResult:
    """Compute stretches of a run again, and compare batches, losses and weights. All processes of a launch call it.

    Raises InputError naming what is not as the run wrote it: data, config, weights, metrics, hashes or code;
    StopRequested where a signal asked to stop.
    """
    config.validate()
    with given_or_own(context) as here:
        run = Path(config.run)
        noted, chosen, num_stretches = _on_main(here, lambda: _choose(config, run))
        faults: list[str] = []
        for stretch in chosen:
            found = _verify_stretch(config, run, noted, stretch, here, workers)
            faults += found.faults
        if faults:
            raise _shared(
                InputError(
                    f"RUN {run}: {len(faults)} of {len(chosen)} stretches are not as the run wrote them; the first: "
                    f"{one_line(faults[0], 350)}"
                )
            )
        if here.is_main:
            print(
                f"{run}: verified {len(chosen)} of {num_stretches} stretches; hash of the run {noted.chain}", flush=True
            )
        return VerifyResult(tuple(chosen), num_stretches, noted.chain)


def _choose(config: VerifyConfig, run: Path) -> tuple[Noted, list[Stretch], int]:
    """What the run has noted, the stretches to compute again, and how many it has. Raises InputError where the run's
    files contradict each other, or its data is another."""
    read_settings(config)
    noted = read_noted(run)
    if is_held(run):
        print(f"note: {run}: the run is still going; verifying what it has finished", flush=True)
    stretches = [Stretch(*each) for each in noted.stretches()]
    if not stretches:
        raise InputError(f"RUN {run}: has no finished stretch between two kept checkpoints; train further")
    chosen = sorted(random.Random(config.seed).sample(stretches, min(config.stretches, len(stretches))))
    print(
        f"{run}: {len(stretches)} stretches between kept checkpoints, of which {len(chosen)} are computed again "
        f"(seed {config.seed})",
        flush=True,
    )
    changes = find_changes(run, noted, [step for stretch in chosen for step in stretch])
    if not changes:
        changes = _changed_data(config, run, chosen[-1])
    if changes:
        for each in changes:
            print(f"  {one_line(each)}", flush=True)
        raise InputError(f"RUN {run}: not as the run wrote it: {one_line(changes[0], 400)}")
    return noted, chosen, len(stretches)


def _changed_data(config: VerifyConfig, run: Path, stretch: Stretch) -> list[str]:
    checkpoint = Checkpoint.read(kept_folder(run, stretch.last))
    data = replace(checkpoint.config.data, **({"train": tuple(config.train)} if config.train else {}))
    shards, _ = open_training_data(data, checkpoint.config.batch_size, checkpoint.config.seed)
    known = checkpoint.metadata.get("fingerprints")
    if isinstance(known, dict) and shards.fingerprint == known.get("train"):
        return []
    return [f"data: {' '.join(data.train)}: its index.json names other samples than the run was trained on"]


def _verify_stretch(
    config: VerifyConfig,
    run: Path,
    noted: Noted,
    stretch: Stretch,
    here: DistributedContext,
    workers: WorkerPool | None,
) -> Compared:
    folder = Path(_on_main(here, lambda: tempfile.mkdtemp(prefix="glioma-dist-verify-")))
    out = folder / "run"
    try:
        starts = _on_main(here, lambda: starts_of(run, stretch))
        settings = _on_main(here, lambda: config_of(run, stretch, out, config.train, starts[-1]))
        arithmetic = _arithmetic(settings, here, starts[-1])
        _on_main(here, lambda: put_start(run, stretch, out, arithmetic))
        try:
            with redirect_stdout(io.StringIO()):
                train(settings, here, workers)
        except StopRequested as error:
            stopped = StopRequested(f"stopped while {stretch} were computed again; run the same command again")
            raise _shared(stopped) from error
        except RunError as error:
            failed = type(error)(f"RUN {run}: {stretch} cannot be computed again: {one_line(error, 350)}")
            failed.is_shared = error.is_shared
            raise failed from error
        return _on_main(here, lambda: _judge(config, run, noted, stretch, out, starts))
    finally:
        if here.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _arithmetic(settings: TrainConfig, context: DistributedContext, start: dict) -> dict[str, Any] | None:
    """What the bits of a run with --reproducible depend on, as it is here. All processes call it together.

    start: of run.json, which has the plan for a memory budget.
    """
    if not settings.reproducible:
        return None
    level: Any = settings.scale.activation_checkpointing
    if settings.scale.memory_budget is not None:
        level = (start.get("scale") or {}).get("activation_checkpointing")
    with fixed_cpu_arithmetic(True):
        return describe_arithmetic(settings, context, level)


def _judge(config: VerifyConfig, run: Path, noted: Noted, stretch: Stretch, out: Path, starts: list) -> Compared:
    """Compare, and print a line for each thing that there is to say."""
    again = read_json(out / RUN)["starts"][-1]
    reasons = [reason for start in starts for reason in why_not_bits(start, again)]
    before, now = (
        Checkpoint.read(each).metadata.get(ARITHMETIC) for each in (kept_folder(run, stretch.last), out / LAST)
    )
    if isinstance(before, dict) and isinstance(now, dict):
        reasons += changes(before, now)
    reasons = list(dict.fromkeys(reasons))
    notes = dict.fromkeys(filter(None, (code_note(start, again) for start in starts)))
    found = compare(run, noted, stretch, out, config.tolerance if reasons else None)
    how = (
        f"equal to {config.tolerance} (not bits: {one_line('; '.join(reasons), 200)})"
        if reasons
        else "equal, bit for bit"
    )
    verdict = "; ".join(found.faults) or f"batches, losses and weights {how}"
    print(f"  {stretch}: {one_line(verdict)}", flush=True)
    for note in (*notes, *found.notes):
        print(f"    note: {one_line(note)}", flush=True)
    return replace(found, faults=tuple(f"{stretch}: {each}" for each in found.faults))


def _on_main(context: DistributedContext, work: Callable[[], Result]) -> Result:
    """What `work` returns on the first process, on all of them. Raises RunError on all where it fails."""
    result, failure = None, None
    if context.is_main:
        try:
            result = work()
        except (RunError, OSError) as error:
            failure = as_run_error(error)
            if failure is None:
                raise
    result, failure = context.gather_objects([(result, failure)])[0]
    if failure is not None:
        raise _shared(failure)
    return result


def _shared(error: RunError) -> RunError:
    error.is_shared = True
    return error
