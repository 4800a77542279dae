"""What the first process tells about a run: metrics.jsonl and status.json for programs, lines for people."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from glioma_dist.config import TrainConfig
from glioma_dist.distributed.run_command import as_run_error, drop_closed_output
from glioma_dist.errors import RunError, StopRequested
from glioma_dist.training.curves import CurvesFile
from glioma_dist.training.learning_rate import LearningRate
from glioma_dist.training.loss_watch import LossWatch
from glioma_dist.training.metrics_file import DICE_BY_CLASS, MetricsFile
from glioma_dist.training.overlays import Overlays
from glioma_dist.training.run_record import RunRecord
from glioma_dist.training.run_warnings import LOSS, RunWarnings
from glioma_dist.training.state import TrainState
from glioma_dist.training.status import STATUS, StatusFile
from glioma_dist.training.summary import Summary, memory_in_use, summary_line
from glioma_dist.training.telemetry import DataWait, TrainingProgress
from glioma_dist.training.trackers.sending import Trackers, Warnings, flat_config


class Reporter:
    """Writes the output of one run; a context manager, whose end is written to status.json.

    If writing fails (a full disk, a closed pipe), the error is stored in `problem`, so that the run can save and end
    together with the other processes.

    added: rows that the earlier start could not write. record: the entry of this start in run.json. check: called
    before each write; raises InputError if the run may no longer write. start: what `describe_start` says, for
    trackers. device: whose memory is told. data_wait: how long the run waits for batches. warn: prints a warning.
    find_problem: asked after each step and each checkpoint for what else has to end the run. learning_rate: of each
    step; by default constant. Where it is not, the rows of steps have it. warnings: of the run. steps_per_epoch: of the
    run; None: nobody looks whether the loss moves.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        num_steps: int,
        check: Callable[[], None],
        added: Sequence[dict[str, Any]] = (),
        record: RunRecord | None = None,
        start: Mapping[str, Any] | None = None,
        device: torch.device | None = None,
        data_wait: DataWait | None = None,
        warn: Callable[[str], None] = lambda line: None,
        find_problem: Callable[[], RunError | None] = lambda: None,
        learning_rate: LearningRate | None = None,
        warnings: RunWarnings | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        self._find_problem = find_problem
        self.problem: RunError | None = None
        self._config, self._device, self._check, self._print_warning = config, device, check, warn
        self._learning_rate = learning_rate or LearningRate(config.lr)
        self._start = {} if start is None else start
        self._metrics = MetricsFile(config.out / "metrics.jsonl", state.step, check, added)
        self._progress = TrainingProgress(state.step, num_steps, config.batch_size)
        self._warnings = RunWarnings(warn) if warnings is None else warnings
        self._status = StatusFile(config.out, state.step, state.step or None, check, self._warnings.entries)
        self._record = record
        self._data_wait = data_wait or DataWait()
        self._summary = Summary(state.step, config.batch_size, device, self._data_wait, config.price_per_hour)
        self._curves = CurvesFile(config.out, self._metrics.kept, check, self._warn)
        self._loss_watch = None
        if steps_per_epoch is not None:
            is_trained = config.model.init not in ("random", "imagenet", "timm")
            warmup = self._learning_rate.warmup_steps
            self._loss_watch = LossWatch(steps_per_epoch, self._metrics.kept, is_trained, warmup)
        self._metrics.kept = []  # they can be many
        self._trackers = Trackers()

    def __enter__(self) -> Reporter:
        self._metrics.__enter__()
        self._progress.__enter__()
        config = self._config
        if config.track:
            told = flat_config(config, self._start)
            self._trackers.open(config.track, config.out, self._status.step, told, Warnings(self._warn, self._check))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._metrics, self._noting_problems():
            self._metrics.catch_up()
        with self._noting_problems():
            self._progress.__exit__(kind, error, trace)
        ending = None if error is None else as_run_error(error) or error
        summary = None
        with contextlib.suppress(Exception):  # of a broken GPU too; how the run has ended must not be hidden
            summary = self._tell_summary()
        # A disk that is full has been told of already.
        with contextlib.suppress(RunError):
            self._status.ended(ending)
        with contextlib.suppress(RunError):
            if self._record is not None:
                self._record.ended(ending, self._status.step, summary)
        # Last, as they may take their time.
        self._curves.close(has_finished=error is None)
        self._trackers.close(has_finished=error is None)

    def _tell_summary(self) -> dict[str, Any]:
        """What this start took; also as a line for people, where it took any step."""
        summary = self._summary.at(self._status.step)
        if summary["steps"]:
            earlier = [] if self._record is None else self._record.earlier_summaries
            self.say(summary_line(summary, earlier))
        if self._warnings.entries:
            kinds = ", ".join(entry["kind"] for entry in self._warnings.entries)
            self.say(f"warnings of this run: {kinds}; {self._config.out / STATUS} has their texts")
        return summary

    @property
    def unwritten_rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl that could not be written."""
        return self._metrics.unwritten

    def say(self, line: str) -> None:
        """A line for people, which stays."""
        with self._noting_problems():
            self._progress.say(line)

    def step(self, step: int, epoch: int, loss: float, dice: float) -> None:
        """A step is finished."""
        with self._noting_problems():
            self._status.step = step
            self._progress.step(step, loss, dice, self._data_wait.last)
        self.problem = self.problem or self._find_problem()
        figures, lr = self._progress.figures, self._learning_rate.at(step - 1)
        with self._noting_problems():  # also where nobody reads the output any more
            told = {} if self._learning_rate.is_constant else {"lr": lr}
            self._metrics.write(step=step, epoch=epoch, loss=loss, dice=dice, **told, **figures)
        if self._loss_watch is not None:
            self.warn(LOSS, self._loss_watch.add(step, loss, dice), step)
        self._curves.step(step, loss, dice)
        if self._trackers.are_there:
            values = {"train/loss": loss, "train/dice": dice, "train/epoch": epoch, "train/lr": lr}
            values |= {f"speed/{name}": value for name, value in figures.items()}
            values |= {f"memory/{name}": value for name, value in memory_in_use(self._device).items()}
            self._trackers.log(values, step)

    def validating(self, done: int, total: int) -> None:
        """A validation is under way."""
        with self._noting_problems():
            self._progress.validating(done, total)

    def warn(self, kind: str, text: str | None, step: int) -> None:
        """Tell a warning once, and keep it; None is none."""
        if text is None or self._warnings.has(kind):
            return
        with self._noting_problems():
            self._warnings.tell(kind, text, step)
        with self._noting_problems():
            self._status.warned()

    def validated(
        self,
        step: int,
        epoch: int,
        loss: float,
        dice: float,
        better: bool,
        overlays: Overlays | None = None,
        dice_by_class: Sequence[float] = (),
    ) -> None:
        """A validation is finished. overlays: some of its images. dice_by_class: of several classes."""
        by_class = dict(zip(self._config.model.classes, dice_by_class, strict=False))
        with self._noting_problems():
            more = {DICE_BY_CLASS: by_class} if by_class else {}
            self._metrics.write(step=step, epoch=epoch, split="val", loss=loss, dice=dice, **more)
            best = ", the best so far" if better else ""
            self._progress.say(f"step {step}: validation loss {loss:.4f}, Dice {dice:.4f}{best}")
            self._progress.validated(step)
        if self._loss_watch is not None:
            self.warn(LOSS, self._loss_watch.add_validation(step, loss, dice), step)
        self._curves.validated(step, loss, dice)
        if self._trackers.are_there:
            named = {f"val/dice/{name}": value for name, value in by_class.items()}
            self._trackers.log({"val/loss": loss, "val/dice": dice, **named}, step)
            if overlays is not None:
                self._trackers.log_images(overlays.drawing(), step)

    def saved(self, step: int) -> None:
        """A checkpoint is complete, from which the run can resume. It has made room where older ones were removed."""
        with self._noting_problems():
            self._metrics.catch_up()
        with self._noting_problems():
            self._status.saved(step)
        self.problem = self.problem or self._find_problem()
        if self._record is not None:
            with contextlib.suppress(RunError):  # an extra; what cannot be written is told of by the others
                self._record.note(self._summary.at(step))

    def _warn(self, line: str) -> None:
        with self._noting_problems():
            self._print_warning(line)

    @contextlib.contextmanager
    def _noting_problems(self) -> Iterator[None]:
        try:
            yield
        except (RunError, OSError) as error:
            problem = as_run_error(error)
            if problem is None:
                raise
            self.problem = self.problem or problem
            if isinstance(problem, StopRequested):
                drop_closed_output()
