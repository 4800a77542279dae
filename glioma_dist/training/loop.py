"""The training loop: one run from its first step, or from where it stopped, to its end."""

from __future__ import annotations

import math
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import torch

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import checked
from glioma_dist.data.loader import Batch, start_workers
from glioma_dist.data.worker_pool import WorkerPool
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.numerics import Numerics, numerics
from glioma_dist.distributed.own_context import given_or_own
from glioma_dist.distributed.own_modes import own_modes
from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.distributed.signals import StopSignal
from glioma_dist.errors import Interrupted, NonFiniteError, RunError, StopRequested
from glioma_dist.evaluation.dice import class_counts, dice_from
from glioma_dist.scale.fsdp import clip_gradients
from glioma_dist.scale.gradients import read_numbers
from glioma_dist.scale.loss_scale import overflow, scale_is_exhausted, step_was_skipped
from glioma_dist.training.ending import with_checkpoint, without_checkpoint
from glioma_dist.training.launch_and_data import explained, join_spatial_group
from glioma_dist.training.memory import explain_full_memory
from glioma_dist.training.opening import open_reporter
from glioma_dist.training.preparation import prepare
from glioma_dist.training.remote_run import staged
from glioma_dist.training.reporter import Reporter
from glioma_dist.training.reproducible import fixed_cpu_arithmetic
from glioma_dist.training.result import TrainResult
from glioma_dist.training.resume import LAST
from glioma_dist.training.run_folder import RunFolder
from glioma_dist.training.state import TrainState
from glioma_dist.training.step_gradients import check_loss, compute_mean, let_weights_move, shared
from glioma_dist.training.trainer import Scores, Trainer
from glioma_dist.training.validation import validate


@own_modes()
def train(
    config: TrainConfig, context: DistributedContext | None = None, workers: WorkerPool | None = None
) -> TrainResult:
    """Train a U-Net, or resume the run in `config.out`, to its end.

    Starts no processes: it trains in this one. If the script was started by `accelerate launch`, every process of the
    launch calls it. Precision and engine are settings of accelerate, for example `ACCELERATE_MIXED_PRECISION=bf16` in
    the environment.

    Args:
        config: all settings of the run. Paths and sizes may be given as text.
        context: rank and device of this process; by default it is made here, and closed at the end.
        workers: processes that read the data (`start_workers`); by default started here first, ended with the call.

    Returns the run's folder, its checkpoints and its best score, the same on all processes.

    Raises:
        InputError: something in `config`, the data or the run's folder cannot be used.
        MemoryFullError: a step does not fit the device's memory; the message says what would.
        NonFiniteError: the loss or its gradient is not finite.
        UnavailableError: a process, a worker or a store did not answer.
        StopRequested: a signal (Ctrl-C, SIGTERM) asked the run to stop; it is saved, and the same call resumes it.
    """
    config = checked(TrainConfig, config)
    is_deterministic = config.deterministic or config.reproducible
    chosen = Numerics(config.scale.tf32, config.scale.cudnn_benchmark, is_deterministic)
    started = nullcontext(workers) if workers else start_workers(config.data)
    with started as pool, given_or_own(context, config.scale.timeout_s) as here, numerics(chosen):
        try:
            with fixed_cpu_arithmetic(config.reproducible):
                return _train(config, here, pool)
        except Interrupted as interrupted:  # before there was anything to save
            raise interrupted.request from interrupted


def _train(config: TrainConfig, context: DistributedContext, workers: WorkerPool) -> TrainResult:
    # A signal waits until the processes ask for it together, or until status.json says how the run has ended.
    with StopSignal() as stop, stop.deferred(), ExitStack() as stack:
        with explained(context):
            group = join_spatial_group(config, context)
            config, uploader = stack.enter_context(staged(config, context, stop))
            folder = stack.enter_context(RunFolder(config, context, uploader))
            trainer, state = prepare(config, context, group, folder, stop, workers)
            context.agree(stop.request)
            folder.claim()
        with open_reporter(trainer, state) as reporter:
            state = TrainingLoop(trainer, state, reporter).run()
        return TrainResult.of(config.out, state)


class TrainingLoop:
    """Steps, validations and checkpoints from `state` to the end of the run.

    If anything ends it early, the last finished step is saved first, if possible. reporter: of the main process.
    """

    def __init__(self, trainer: Trainer, state: TrainState, reporter: Reporter | None) -> None:
        self.trainer, self.state, self.reporter = trainer, state, reporter
        self._saver = trainer.saver
        self._saver.begin(state, reporter)
        self._in_step = False
        self._batches = trainer.batches(state.step)

    def run(self) -> TrainState:
        """Step until the end, until validation stops falling, or until the system asks to stop."""
        trainer = self.trainer
        try:
            with trainer.stop.deferred():
                while True:
                    if trainer.validation_is_due(self.state):
                        self.state = validate(trainer, self.state, self.reporter)
                    if trainer.checkpoint_is_due(self.state):
                        self._save()
                    if trainer.finished(self.state):
                        self._end_well()
                        return self.state
                    self._take_step()
        except Exception as error:
            with trainer.stop.deferred():
                self._end_early(error)
            raise
        finally:
            self._batches.close()
            trainer.close()

    def _end_well(self) -> None:
        """Raises on all processes what kept the first from saving, or from telling of the last steps, such as a full
        disk."""
        self._saver.wait()
        problem = self.reporter.problem if self.reporter else None
        if self.trainer.hashes is not None:
            try:
                self.trainer.hashes.close()
            except RunError as error:
                problem = problem or error
        self.trainer.context.agree(None if isinstance(problem, StopRequested) else problem)

    def _take_step(self) -> None:
        trainer, step = self.trainer, self.state.step
        batch, problem = self._next_batch()
        (is_time,) = self._saver.agree(problem, self._saver.is_time)
        if is_time:
            self._save()
        self._in_step = True
        trainer.guard.begin()
        with explain_full_memory(trainer.config, trainer.context, trainer.level):
            while (scores := train_step(trainer, batch, step)) is None:
                trainer.guard.undo()
        self._in_step = False
        self.state = replace(self.state, step=step + 1)
        self._saver.reserve()
        if trainer.hashes is not None:
            trainer.hashes.add(step + 1, batch.digests, *scores[:2])
        if self.reporter:
            self.reporter.step(step + 1, trainer.epoch(self.state), scores.loss, scores.dice)

    def _next_batch(self) -> tuple[Batch | None, RunError | None]:
        """This process's part of the next batch; or what ends the run before it."""
        trainer = self.trainer
        try:
            with trainer.stop.immediate(), trainer.data_wait:
                trainer.spatial_group.cut(trainer.config.data.size.height)  # a validation may have set other strips
                batch = next(self._batches)
        except (Exception, Interrupted) as error:
            problem = as_run_error(error, trainer.context.seconds_to_answer)
            if problem is None:
                raise
            return None, problem
        return batch, self.reporter.problem if self.reporter else None

    def _save(self) -> None:
        if self._saver.begun != self.state:
            self._saver.save(self.state, LAST)

    def _end_early(self, error: Exception) -> None:
        """Save what is finished, then raise what ends the run; its message says what was saved.

        Returns where `error` is a fault of the program, or there is nothing to say about what was saved.
        """
        trainer, context = self.trainer, self.trainer.context
        ending = context.explain(error)
        if self._in_step:
            trainer.guard.undo()
        together = context.num_processes == 1 or (ending is not None and ending.is_shared)
        alone = not together and context.is_main and not context.accelerator.is_fsdp2
        if together or alone:
            try:
                self._saver.settle(alone)
                if self._saver.saved != self.state and not trainer.guard.weights_move:
                    self._saver.save(self.state, LAST, alone)
                    self._saver.wait(alone)
            except Exception as second:
                why = as_run_error(second) or second
                if ending is None:
                    return
                raise without_checkpoint(ending, why, self.state.step, together) from error
        step = self._saver.saved.step
        if ending is None or (step == 0 and ending is error):
            return
        raise with_checkpoint(ending, step) from error


def train_step(trainer: Trainer, batch: Batch, step: int) -> Scores | None:
    """One optimizer step on this process's share of a batch: its images, or its rows of them.

    Returns the scores of the whole batch; None where the gradients overflowed fp16, so that no weight moved: the loss
    scale is half of what it was, and the step is to be taken again. Raises NonFiniteError, on every process and before
    any weight moves, where the loss of any image is not finite.
    """
    config, context, group = trainer.config, trainer.context, trainer.spatial_group
    logits, losses = compute_mean(trainer, batch, step)
    with torch.no_grad():
        outputs = trainer.outputs
        counts = class_counts(outputs.predicted(logits), outputs.mask(batch.masks), outputs.num_mask_channels)
        scores = dice_from(group.total(counts)).mean(dim=1)
        if trainer.reproducible is not None:
            sums = trainer.reproducible.sums(losses, scores)
        else:
            sums = torch.stack([losses.double().sum() / group.size, scores.sum() / group.size])
            sums = context.accelerator.reduce(sums, reduction="sum")
    # Averaged over the processes by now, and so finite on all or on none.
    in_backward = trainer.in_backward
    norm = clip_gradients(trainer.model, context, config.clip_norm) if in_backward is None else in_backward.norm()
    overflows = overflow(context.accelerator, trainer.optimizer)
    loss, score, norm, overflows = read_numbers(*sums, norm, overflows)
    check_loss(trainer, batch, step, loss, losses)
    if context.accelerator.scaler is None and not math.isfinite(norm):  # with fp16 its scale is looked at first
        raise shared(
            NonFiniteError(
                f"step {step + 1}: the loss is {loss / config.batch_size} but its gradient is not finite; give a "
                f"smaller --lr than {config.lr}, in another --out"
            )
        )
    if in_backward is None:
        let_weights_move(trainer, step)
        trainer.optimizer.step()
    is_skipped = step_was_skipped(context.accelerator, trainer.optimizer, overflows)
    if trainer.average is not None and not is_skipped:
        trainer.average.update(step + 1)
    if trainer.reproducible is not None:
        trainer.reproducible.accept()
    trainer.guard.weights_move = False
    trainer.optimizer.zero_grad()
    if is_skipped:
        if scale_is_exhausted(context.accelerator):
            raise shared(NonFiniteError(f"step {step + 1}: its gradient overflows fp16 at any loss scale; use bf16"))
        return None
    return Scores(loss / config.batch_size, score / config.batch_size)
