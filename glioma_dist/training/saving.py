"""Checkpoints of a run, written while it trains: a thread copies the tensors and writes them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from glioma_dist.config import TrainConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.errors import RunError
from glioma_dist.model.checkpoint_writer import Stages, Writer
from glioma_dist.scale.loss_scale import scaler_state
from glioma_dist.training.in_thread import InThread
from glioma_dist.training.reporter import Reporter
from glioma_dist.training.reproducible import ReproducibleSteps
from glioma_dist.training.resume import BEST, LAST
from glioma_dist.training.run_folder import RunFolder
from glioma_dist.training.snapshot import SnapshotMemory
from glioma_dist.training.state import TrainState, state_stages
from glioma_dist.training.step_hashes import StepHashes, kept_folder
from glioma_dist.training.weight_average import WeightAverage

SECONDS_PER_MINUTE = 60.0


class CheckpointSaver:
    """Writes <out>/last, from which training can resume, and <out>/best, the model alone.

    All processes call `save` together, with the same arguments. Weights, optimizer and moving average must not change
    between it and `let_tensors_change`: a thread copies them meanwhile, or a GPU has the copies in its queue. Another
    thread writes the files, one checkpoint at a time. It talks to no other process. That a write has ended on all of
    them is noticed where they agree anyway, by `agree`, or in `wait`, always in their main threads.

    Where a `best` cannot be written, no `last` is written before it is: none tells of a `best` that is not there.
    """

    def __init__(
        self,
        config: TrainConfig,
        context: DistributedContext,
        folder: RunFolder,
        metadata: dict,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None = None,
        reproducible: ReproducibleSteps | None = None,
        hashes: StepHashes | None = None,
        is_kept: Callable[[TrainState], bool] = lambda state: False,
    ) -> None:
        """hashes: of the steps, written before each `last`. is_kept: whether that of a state stays in steps/."""
        self.begun = self.saved = TrainState()
        """Of the newest `last` that was begun, and of the newest that is complete on all processes."""
        self._config, self._context, self._folder, self._metadata = config, context, folder, metadata
        self._model, self._optimizer, self._reporter = model, optimizer, None
        self._average, self._reproducible = average and average.tensors, reproducible
        self._hashes, self._is_kept = hashes, is_kept
        self._writer = Writer(context.rank, context.num_processes, context.gather_objects, folder.check)
        self._memory, self._is_reserved = SnapshotMemory(), False
        self._queue: deque[_Write] = deque()
        """The same on all processes. The first one is being written."""
        self._owed: TrainState | None = None
        """Of a `best` whose write failed; its weights are still in the memory."""
        self._begun_at = time.monotonic()

    def begin(self, state: TrainState, reporter: Reporter | None) -> None:
        """Training begins at `state`, which is saved already. reporter: of the first process."""
        self.begun = self.saved = state
        self._reporter = reporter

    def reserve(self) -> None:
        """Have a thread allocate the memory for copies, once. Call it after a step: the optimizer then has a state."""
        if not self._is_reserved:
            self._is_reserved = True
            model = self._context.accelerator.unwrap_model(self._model)
            self._memory.reserve(model, self._optimizer, self._writer, self._average)

    def save(self, state: TrainState, name: str, alone: bool = False) -> None:
        """Begin to write a checkpoint of the run as it is now, at `state`, once the one before is complete.

        alone: this process writes full tensors, waits for no other, because some are lost, and returns when the
        checkpoint is complete. Raises RunError on all processes where the checkpoint cannot be begun, or where the one
        before could not be written.
        """
        if any(write.name == name or write.state.step != state.step for write in self._queue):
            self.wait(alone)
        writer = self._alone if alone else self._writer
        self._context.whereabouts.at(f"saving {name}/ of step {state.step}")
        if self._hashes is not None and name == LAST:
            self._hashes.save(writer, alone)
        write = _Write(name, state, self._stages(name, state, writer))
        write.run_first_stage(writer)
        self._queue.append(write)
        if name == LAST:
            self.begun, self._begun_at = state, time.monotonic()
        if len(self._queue) == 1:
            self._start()
        if alone:
            self.wait(alone)

    def let_tensors_change(self) -> None:
        """Call it before weights, optimizer or moving average change: wait until what `save` began is copied."""
        self._memory.wait()

    def agree(self, problem: RunError | None, *marks: bool) -> list[bool]:
        """`DistributedContext.agree`, where the processes also notice the end of a write. Raises why one failed."""
        writing, *marked = self._context.agree(problem, bool(self._queue) and not self._queue[0].is_ready, *marks)
        if self._queue and not writing:
            self._advance(self._writer)
        return marked

    def wait(self, alone: bool = False) -> None:
        """Until all that was begun is complete. alone: as of `save`. Raises RunError as `save`."""
        while self._queue:
            self._advance(self._alone if alone else self._writer)

    def settle(self, alone: bool = False) -> None:
        """Before the last `save` of a run that ends early: end what is under way, and write a `best` that failed again.

        Raises RunError where that fails again.
        """
        with suppress(RunError):  # what stands in the way is told by the next write
            self.wait(alone)
        if self._owed is not None:
            owed, self._owed = self._owed, None
            self.save(owed, BEST, alone)
            self.wait(alone)

    def close(self) -> None:
        """Let the thread end its stage: nothing may be written once another run can hold the folder."""
        if self._queue:
            self._queue[0].wait()
        self._memory.close()

    @property
    def is_time(self) -> bool:
        """Whether --save-every-minutes asks for a checkpoint now, by the clock of the first process."""
        minutes = self._config.save_every_minutes
        if minutes is None or not self._context.is_main or self._queue:
            return False
        return time.monotonic() - self._begun_at >= minutes * SECONDS_PER_MINUTE

    @property
    def _alone(self) -> Writer:
        return Writer(check=self._folder.check)

    def _stages(self, name: str, state: TrainState, writer: Writer) -> Stages:
        config, accelerator, metadata = self._config, self._context.accelerator, self._metadata
        if self._reporter and name == LAST and self._reporter.unwritten_rows:
            # The checkpoint can lie on a disk that has space.
            metadata = metadata | {"unwritten_rows": list(self._reporter.unwritten_rows)}
        if self._reproducible is not None and name == LAST:
            metadata = metadata | self._reproducible.metadata()
        return state_stages(
            config.out / name,
            config,
            state,
            accelerator.unwrap_model(self._model),
            self._optimizer if name == LAST else None,
            metadata,
            writer,
            config.keep_last if name == LAST else 1,
            scaler_state(accelerator) if name == LAST else None,
            memory=self._memory,
            average=self._average,
            also=kept_folder(config.out, state.step) if name == LAST and self._is_kept(state) else None,
        )

    def _start(self) -> None:
        """Start the first of the queue, of which the first stage is done."""
        self._queue[0].start_next_stage()

    def _advance(self, writer: Writer) -> None:
        """Wait for the stage that is running, on all processes, and start the next, or the next of the queue."""
        write = self._queue[0]
        try:
            is_complete = not write.go_on(writer)
        except RunError as error:
            self._drop_all(error)
            raise
        if not is_complete:
            return
        self._queue.popleft()
        if self._queue:
            self._start()
        self._tell_of(write)

    def _drop_all(self, error: RunError) -> None:
        for write in self._queue:
            if write.name == BEST:
                self._owed = write.state
            write.drop(error)
        self._queue.clear()

    def _tell_of(self, write: _Write) -> None:
        """A checkpoint has its final name, and all processes know it."""
        if write.name == LAST:
            self.saved = write.state
            self._folder.mark_resumable()
            if self._hashes is not None and self._is_kept(write.state):
                self._hashes.keep(write.state.step)
            if self._reporter:
                self._reporter.saved(write.state.step)
        if self._context.is_main:
            self._folder.checkpoint_complete(write.name, write.state.step)


@dataclass
class _Write:
    """A checkpoint that is being written."""

    name: str
    state: TrainState
    stages: Stages
    results: list[Any] | None = None
    """What the stage before returned on each process."""
    running: InThread | None = None

    @property
    def is_ready(self) -> bool:
        """Whether this process has ended the stage that was started."""
        return self.running is not None and self.running.is_done

    def run_first_stage(self, writer: Writer) -> None:
        """Raises RunError on all processes where it fails on any."""
        try:
            self.results = writer.together(next(self.stages))
        except RunError as error:
            self.stages.throw(error)

    def start_next_stage(self) -> bool:
        """Start it in a thread. Returns False where there is none: the checkpoint is complete."""
        try:
            work = self.stages.send(self.results)
        except StopIteration:
            return False
        self.running = InThread(work, "checkpoint")
        return True

    def go_on(self, writer: Writer) -> bool:
        """Wait for the stage that is running and start the next. Returns as `start_next_stage`."""
        self.results = writer.together(self.running.result)
        return self.start_next_stage()

    def wait(self) -> None:
        if self.running is not None:
            self.running.wait()

    def drop(self, error: RunError) -> None:
        """Remove what was written so far."""
        with suppress(RunError):
            self.stages.throw(error)
