"""What the first process tells about a run: metrics.jsonl and status.json for programs, lines for people."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from glioma_dist.config import TrainConfig
from glioma_dist.distributed.run_command import as_run_error, drop_closed_output
from glioma_dist.errors import RunError, StopRequested
from glioma_dist.training.run_record import RunRecord
from glioma_dist.training.state import TrainState
from glioma_dist.training.status import StatusFile
from glioma_dist.training.telemetry import MetricsFile, TrainingProgress


class Reporter:
    """Writes the output of one run; a context manager, whose end is written to status.json.

    If writing fails (a full disk, a closed pipe), the error is stored in `problem`, so that the run can save and end
    together with the other processes.

    added: rows that the earlier start could not write. record: the entry of this start in run.json. check: called
    before each write; raises InputError if the run may no longer write. find_problem: asked after each step and each
    checkpoint for what else has to end the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        num_steps: int,
        check: Callable[[], None],
        added: Sequence[dict[str, Any]] = (),
        record: RunRecord | None = None,
        find_problem: Callable[[], RunError | None] = lambda: None,
    ) -> None:
        self._find_problem = find_problem
        self.problem: RunError | None = None
        self._metrics = MetricsFile(config.out / "metrics.jsonl", state.step, check, added)
        self._progress = TrainingProgress(state.step, num_steps, config.batch_size)
        self._status = StatusFile(config.out, state.step, state.step or None, check)
        self._record = record

    def __enter__(self) -> Reporter:
        self._metrics.__enter__()
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._metrics, self._noting_problems():
            self._metrics.catch_up()
        with self._noting_problems():
            self._progress.__exit__(kind, error, trace)
        ending = None if error is None else as_run_error(error) or error
        # A disk that is full has been told of already.
        with contextlib.suppress(RunError):
            self._status.ended(ending)
        with contextlib.suppress(RunError):
            if self._record is not None:
                self._record.ended(ending, self._status.step)

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
            self._progress.step(step, loss, dice)
        self.problem = self.problem or self._find_problem()
        with self._noting_problems():  # also where nobody reads the output any more
            speed = self._progress.images_per_second
            self._metrics.write(step=step, epoch=epoch, loss=loss, dice=dice, images_per_second=speed)

    def validated(self, step: int, epoch: int, loss: float, dice: float, better: bool) -> None:
        """A validation is finished."""
        with self._noting_problems():
            self._metrics.write(step=step, epoch=epoch, split="val", loss=loss, dice=dice)
            best = ", the best so far" if better else ""
            self._progress.say(f"step {step}: validation loss {loss:.4f}, Dice {dice:.4f}{best}")

    def saved(self, step: int) -> None:
        """A checkpoint is complete, from which the run can resume. It has made room where older ones were removed."""
        with self._noting_problems():
            self._metrics.catch_up()
        with self._noting_problems():
            self._status.saved(step)
        self.problem = self.problem or self._find_problem()

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
