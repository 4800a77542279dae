"""The moment at which a run, prepared and read, begins to write into its folder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress

from glioma_dist.config.file import to_dict
from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.errors import RunError
from glioma_dist.files import write_json_atomically
from glioma_dist.scale.device_memory import GIB
from glioma_dist.training.curves import CURVES, CurvesFile
from glioma_dist.training.memory import estimate_memory
from glioma_dist.training.metrics_file import read_rows
from glioma_dist.training.reporter import Reporter
from glioma_dist.training.resume import METRICS
from glioma_dist.training.run_record import RunRecord, describe_start
from glioma_dist.training.state import TrainState, read_unwritten_rows
from glioma_dist.training.status import StatusFile, mark_finished
from glioma_dist.training.step_hashes import cut_hashes
from glioma_dist.training.trainer import Trainer
from glioma_dist.wording import counted


def open_reporter(trainer: Trainer, state: TrainState) -> AbstractContextManager[Reporter | None]:
    """What the main process tells with; None on the others, and where the run was over before.

    Raises RunError on all processes where the main one cannot write.
    """
    config, context = trainer.config, trainer.context
    reporter, problem = None, None
    start = describe_start(config, context, trainer.level, state.step)
    trainer.overlays.are_wanted = bool(context.gather_objects([config.track])[0])
    trainer.folder.has_begun = True
    if context.is_main:
        if trainer.folder.checkpoint is not None:
            trainer.warnings.resume(config.out)  # first: what fails from here on writes status.json, too
        try:
            if trainer.finished(state) and not trainer.validation_is_due(state):
                if mark_finished(config.out, state.step) or not (config.out / CURVES).exists():
                    _draw_curves(trainer)
                print(f"{config.out}: the run is finished, at step {state.step}", flush=True)
            else:
                write_json_atomically(config.out / "config.json", to_dict(config))
                if trainer.hashes is None:
                    cut_hashes(config.out, state.step, trainer.folder.check)
                else:
                    trainer.hashes.begin(state.step)
                start["warnings"] = trainer.warnings.entries
                record = RunRecord(config.out, start, trainer.folder.check, trainer.folder.say)
                old = trainer.folder.checkpoint
                added = read_unwritten_rows(old) if old else []
                folder = trainer.folder
                known = (start, context.device, trainer.data_wait, folder.say, folder.upload_problem)
                watched = (trainer.warnings, trainer.sampler.steps_per_epoch)
                parts = (*known, trainer.learning_rate, *watched)
                reporter = Reporter(config, state, trainer.num_steps, folder.check, added, record, *parts)
        except (RunError, OSError) as error:
            problem = as_run_error(error)
            if problem is None:
                raise
            with suppress(RunError):  # what cannot be written may be this file
                steps = (state.step, state.step or None)
                StatusFile(config.out, *steps, trainer.folder.check, trainer.warnings.entries).ended(problem)
    try:
        context.agree(problem)
    except RuntimeError as error:  # a process is lost
        ending = context.explain(error) or error
        with reporter or nullcontext():
            raise ending from error
    if reporter is None:
        return nullcontext()
    processes = f"{context.num_processes} process{'es' if context.num_processes > 1 else ''} ({context.device.type})"
    number = config.scale.gradient_accumulation
    parts = f" in {number} micro-batches" if number > 1 else ""
    peak = estimate_memory(config, context, trainer.level)
    memory = "" if peak is None else f", estimated memory of a step {peak / GIB:.2f} GiB a process"
    reporter.say(
        f"{counted(len(trainer.train), 'image')}, batch {config.batch_size}{parts} on {processes}, activation "
        f"checkpointing {trainer.level}, from step {state.step} to {trainer.num_steps}{memory}, in {config.out}"
    )
    return reporter


def _draw_curves(trainer: Trainer) -> None:
    """Draw curves.png where the run was killed, or its disk was full, between its last checkpoint and that."""
    out, folder = trainer.config.out, trainer.folder
    with suppress(RunError):  # damaged metrics have nothing to show
        rows = [row for _, row in read_rows(out / METRICS)]
        CurvesFile(out, rows, folder.check, folder.say).draw_again()
