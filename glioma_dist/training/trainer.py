"""All that a run needs, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn

from glioma_dist.config import TrainConfig
from glioma_dist.data.loader import Batch, ValidationImages, places_of, training_batches
from glioma_dist.data.mixture import MixtureSampler, Shards
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.worker_pool import WorkerPool
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.signals import StopSignal
from glioma_dist.errors import RunError
from glioma_dist.losses import training_loss
from glioma_dist.model.outputs import Outputs
from glioma_dist.scale.checkpoint_plan import CheckpointPlan
from glioma_dist.scale.optimizer_in_backward import OptimizerInBackward
from glioma_dist.scale.planner import Level
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.training.data_watch import DataWatch
from glioma_dist.training.learning_rate import LearningRate
from glioma_dist.training.overlays import Overlays
from glioma_dist.training.reproducible import ReproducibleSteps
from glioma_dist.training.run_folder import RunFolder
from glioma_dist.training.run_warnings import RunWarnings
from glioma_dist.training.saving import CheckpointSaver
from glioma_dist.training.state import TrainState
from glioma_dist.training.step_hashes import StepHashes
from glioma_dist.training.telemetry import DataWait
from glioma_dist.training.validation_watch import ValidationWatch
from glioma_dist.training.weight_average import WeightAverage


class Scores(NamedTuple):
    """Means over all images of a batch or a data set, over all processes."""

    loss: float
    dice: float
    """The mean over the classes where there are several."""
    dice_by_class: tuple[float, ...] = ()
    """Of each class of cells, where there are several."""


def num_steps(config: TrainConfig, sampler: DeterministicSampler | MixtureSampler) -> int:
    """Steps of a run: --epochs, or --max-steps where these are fewer."""
    steps = config.epochs * sampler.steps_per_epoch
    return min(steps, config.max_steps or steps)


class StepGuard:
    """Undoes what a failed step has changed: puts running statistics back.

    model: whose buffers are kept, in place, on its own device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self.weights_move = False
        """True from the moment at which the optimizer begins to change weights until it has changed all."""

    @torch.no_grad()
    def begin(self) -> None:
        """Call it before a step."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def undo(self) -> None:
        """Put back what the step has changed so far. Weights that have begun to move cannot be put back."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)


@dataclass(frozen=True)
class Trainer:
    """All that a run needs, made once by `prepare`."""

    config: TrainConfig
    context: DistributedContext
    train: Shards
    val: ShardReader | None
    sampler: DeterministicSampler | MixtureSampler
    model: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    level: Level | CheckpointPlan
    spatial_group: SpatialGroup
    metadata: dict
    """Content of checkpoints besides the train state: lineage, fingerprints."""
    folder: RunFolder
    stop: StopSignal
    workers: WorkerPool
    """Processes that read and prepare images, in training and in validation."""
    average: WeightAverage | None = None
    """Of the weights, where --ema-decay asks for one."""
    reproducible: ReproducibleSteps | None = None
    """With --reproducible: gradients and sums that do not depend on the number of processes."""
    in_backward: OptimizerInBackward | None = None
    """With --scale.optimizer-in-backward: moves each weight as soon as its gradient is complete."""
    guard: StepGuard = field(init=False)
    saver: CheckpointSaver = field(init=False)
    data_wait: DataWait = field(init=False, default_factory=DataWait)
    """Of the batches that this process trains on."""
    overlays: Overlays = field(init=False, default_factory=Overlays)
    """Examples of each validation, for trackers."""
    validation_watch: ValidationWatch = field(init=False, default_factory=ValidationWatch)
    warnings: RunWarnings = field(init=False)
    hashes: StepHashes | None = field(init=False)
    """Of batches and losses, where --keep-every asks for them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "guard", StepGuard(self.model))
        is_kept = self.config.keep_every is not None
        has_share = self.spatial_group.rank == 0
        hashes = StepHashes(self.config.out, self.folder.check, has_share) if is_kept else None
        object.__setattr__(self, "hashes", hashes)
        parts = (self.folder, self.metadata, self.model, self.optimizer, self.average)
        saved = (self.reproducible, hashes, self.is_kept)
        saver = CheckpointSaver(self.config, self.context, *parts, *saved)
        object.__setattr__(self, "saver", saver)
        object.__setattr__(self, "warnings", RunWarnings(self.folder.say))

    def batches(self, first_step: int) -> Generator[Batch]:
        """Yield this process's part of each batch, from batch number `first_step` on, on its device."""
        group = self.spatial_group
        batches = training_batches(
            self.train,
            self.sampler,
            self.config.data,
            first_step,
            group.dp_rank,
            group.dp_size,
            self.context.seconds_to_answer,
            rows=group.cut(self.config.data.size.height),
            device=self.context.device,
            pool=self.workers,
            targets=self.config.model.targets,
            with_digests=self.hashes is not None,
            may_differ=self.config.reproducible,
        )
        return self._noted(batches, first_step)

    def _noted(self, batches: Generator[Batch], first_step: int) -> Generator[Batch]:
        """The same, noting what this process waits for, and warning where it waits long."""
        context = self.context
        who = context.whereabouts.name([context.rank]) if context.num_processes > 1 else "training"
        with closing(batches), DataWatch(self.workers, who, context.seconds_to_answer) as watch:
            for step in count(first_step + 1):
                context.whereabouts.wait_for_data(f"step {step}")
                with watch.waiting(step):
                    batch = next(batches)
                yield batch

    @cached_property
    def validation_images(self) -> ValidationImages:
        """This process's images. If other processes have more, the first image of all is repeated."""
        group, places = self.spatial_group, places_of(self.val)
        own = places[group.dp_rank :: group.dp_size]
        own += places[:1] * (math.ceil(len(places) / group.dp_size) - len(own))
        return ValidationImages(
            self.val,
            self.config.data,
            own,
            (group.rank, group.size),
            self.context.seconds_to_answer,
            self.context.device,
            self.workers,
            self.config.model.targets,
        )

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Within it, the model has the weights that are evaluated: their moving average, where there is one."""
        if self.average is None:
            return nullcontext()
        self.saver.let_tensors_change()
        return self.average.in_place_of_weights()

    def close(self) -> None:
        """Have the workers, which may outlive the run, forget its validation images; wait for a write under way."""
        if "validation_images" in vars(self):
            self.validation_images.close()
        self.saver.close()
        if self.hashes is not None:
            with suppress(RunError):  # the run has ended, and said why
                self.hashes.close()

    @cached_property
    def outputs(self) -> Outputs:
        """What the channels of the network's logits are."""
        return Outputs.of(self.config.model)

    @cached_property
    def loss(self) -> Callable[..., Tensor]:
        """The loss of each image: of logits, a batch's masks, and `group`."""
        return training_loss(self.config)

    @property
    def num_steps(self) -> int:
        return num_steps(self.config, self.sampler)

    def finished(self, state: TrainState) -> bool:
        """All steps are taken, or validation has not got better for as often as `patience` allows."""
        impatient = self.config.patience is not None and state.evaluations_since_best >= self.config.patience
        return impatient or state.step >= self.num_steps

    def epoch(self, state: TrainState) -> int:
        """Number of the epoch, from 0, that the last step belonged to."""
        return (state.step - 1) // self.sampler.steps_per_epoch

    def is_milestone(self, state: TrainState) -> bool:
        """Whether the run is validated after this step."""
        every = self.config.eval_every or self.sampler.steps_per_epoch
        return state.step > 0 and (state.step == self.num_steps or state.step % every == 0)

    def validation_is_due(self, state: TrainState) -> bool:
        """A run that stopped between a step and its validation has this still to do."""
        return self.val is not None and self.is_milestone(state) and state.validated_step != state.step

    def checkpoint_is_due(self, state: TrainState) -> bool:
        every = self.config.save_every
        is_due = bool(every and state.step and state.step % every == 0)
        return self.is_milestone(state) or is_due or self.is_kept(state)

    def is_kept(self, state: TrainState) -> bool:
        """Whether the checkpoint of this step stays for good: by --keep-every, and the last one of such a run."""
        every = self.config.keep_every
        return bool(every and state.step) and (state.step % every == 0 or self.finished(state))
