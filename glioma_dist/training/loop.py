"""The training loop: one run from its first step, or from where it stopped, to its end."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import nn

from glioma_dist.config import TrainConfig
from glioma_dist.config_file import to_dict
from glioma_dist.data.loader import Batch, evaluation_samples, image_tensor, prepare_evaluation_sample, training_batches
from glioma_dist.data.mixture import Mixture, Shards, open_training_data, open_validation_data
from glioma_dist.data.order import Order
from glioma_dist.data.shards import ShardReader
from glioma_dist.errors import InputError
from glioma_dist.evaluation.dice import dice_from, pixel_counts
from glioma_dist.files import write_json_atomically
from glioma_dist.model.checkpoint_writer import Writer
from glioma_dist.model.unet import build_model, normalise
from glioma_dist.runtime import Runtime, StopSignal
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.planner import Recompute
from glioma_dist.scale.rows import Rows, band_edges, check_division
from glioma_dist.scale.scale_model import scale_model
from glioma_dist.scale.sharding import choose_shards, clip_gradients
from glioma_dist.training.losses import segmentation_loss
from glioma_dist.training.memory import choose_recompute, explain_full_memory
from glioma_dist.training.run_folder import RunFolder
from glioma_dist.training.state import Position, load_optimizer, load_weights, save_state
from glioma_dist.training.telemetry import MetricsFile, TrainingProgress


class Scores(NamedTuple):
    """Means over all images of a batch or a data set, over all processes."""

    loss: float
    dice: float


@dataclass(frozen=True)
class Training:
    """All that a run needs, made once by `prepare`."""

    config: TrainConfig
    runtime: Runtime
    train: Shards
    val: ShardReader | None
    order: Order | Mixture
    model: nn.Module
    optimizer: torch.optim.Optimizer
    recompute: Recompute
    rows: Rows
    facts: dict
    """What checkpoints say beside the position: lineage, fingerprints."""
    folder: RunFolder

    @property
    def num_steps(self) -> int:
        steps = self.config.epochs * self.order.steps_per_epoch
        return min(steps, self.config.max_steps or steps)

    def finished(self, position: Position) -> bool:
        """All steps are taken, or validation has not got better for as often as `patience` allows."""
        impatient = self.config.patience is not None and position.evaluations_since_best >= self.config.patience
        return impatient or position.step >= self.num_steps

    def epoch(self, position: Position) -> int:
        """Number of the epoch, from 0, that the last step belonged to."""
        return (position.step - 1) // self.order.steps_per_epoch

    @property
    def eval_every(self) -> int:
        return self.config.eval_every or self.order.steps_per_epoch


def train(config: TrainConfig, runtime: Runtime) -> None:
    """Train, or go on training, and leave config.json, metrics.jsonl, last/ and best/ in `config.out`."""
    rows = join_rows(config, runtime)
    with RunFolder(config, runtime) as folder:
        training, position = prepare(config, runtime, rows, folder)
        runtime.wait()
        folder.claim()
        if runtime.is_main:
            _train_and_tell(training, position)
        else:
            run_steps(training, position, None, None)


def _train_and_tell(training: Training, position: Position) -> None:
    """What the main process does: train, and write down how it goes."""
    config, runtime = training.config, training.runtime
    write_json_atomically(config.out / "config.json", to_dict(config))
    with (
        MetricsFile(config.out / "metrics.jsonl", position.step, training.folder.check) as metrics,
        TrainingProgress(position.step, training.num_steps, config.batch_size) as progress,
    ):
        processes = (
            f"{runtime.num_processes} process{'es' if runtime.num_processes > 1 else ''} ({runtime.device.type})"
        )
        progress.say(
            f"{len(training.train)} images, batch {config.batch_size} on {processes}, recompute {training.recompute}, "
            f"from step {position.step} to {training.num_steps}, in {config.out}"
        )
        run_steps(training, position, metrics, progress)


def join_rows(config: TrainConfig, runtime: Runtime) -> Rows:
    """The processes that share this one's images.

    Raises InputError, before any data is read, where the launch does not fit the settings.
    """
    check_division(config.scale.rows, runtime.num_processes)
    num_groups = runtime.num_processes // config.scale.rows
    if config.batch_size % num_groups:
        raise InputError(
            f"--batch-size {config.batch_size} cannot be shared by {num_groups} "
            f"{'processes' if config.scale.rows == 1 else 'groups of processes'}: give a multiple of {num_groups}"
        )
    band_edges(config.data.size.height, config.scale.rows)
    return Rows.join(runtime, config.scale.rows)


def prepare(config: TrainConfig, runtime: Runtime, rows: Rows, folder: RunFolder) -> tuple[Training, Position]:
    """Open the data, make model and optimizer, and put them where the run's checkpoint left off."""
    old = folder.checkpoint
    train, order = open_training_data(config.data, config.batch_size, config.seed)
    val = open_validation_data(config.data)
    model, lineage = build_model(config.model, config.seed)
    fingerprints = {"train": train.fingerprint, "val": val.fingerprint if val else None}
    facts = {"lineage": [*lineage, *train.lineage], "fingerprints": fingerprints}
    if runtime.num_processes > 1:
        model = synchronise_batch_norm(model, runtime.device)
    kind = choose_recompute(config, runtime)
    scale_model(model, config.scale, kind, rows)
    model.to(runtime.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    position = Position()
    if old is not None:
        if old.facts["fingerprints"] != fingerprints:
            raise InputError(
                f"--out {config.out} was trained on other data than {' '.join(config.data.train)} and "
                f"{config.data.val}; give the same data, or another --out"
            )
        position = load_weights(old, model)
    choose_shards(model, runtime)
    model, optimizer = runtime.accelerator.prepare(model, optimizer)
    if old is not None:
        load_optimizer(old, runtime.accelerator.unwrap_model(model), optimizer)
    return Training(config, runtime, train, val, order, model, optimizer, kind, rows, facts, folder), position


def run_steps(
    training: Training, position: Position, metrics: MetricsFile | None, progress: TrainingProgress | None
) -> Position:
    """Step until the end, until validation stops falling, or until the system asks to stop; the main process has
    `metrics` and `progress`."""
    config, runtime = training.config, training.runtime
    rows = training.rows
    batches = training_batches(
        training.train, training.order, config.data, position.step, rows.data_rank, rows.num_data_groups
    )
    with StopSignal() as stop:
        while not training.finished(position):
            batch = next(batches).rows(rows.cut(config.data.size.height)).to(runtime.device)
            with explain_full_memory(config, runtime, training.recompute):
                scores, stopping = train_step(training, batch, position.step, stop.asked)
            position = replace(position, step=position.step + 1)
            if metrics and progress:
                progress.step(position.step, *scores)
                metrics.write(
                    step=position.step,
                    epoch=training.epoch(position),
                    loss=scores.loss,
                    dice=scores.dice,
                    images_per_second=progress.images_per_second,
                )
            milestone = position.step == training.num_steps or position.step % training.eval_every == 0
            if milestone and training.val is not None:
                position = validate(training, position, metrics, progress)
            if milestone or stopping or (config.save_every and position.step % config.save_every == 0):
                save(training, position, "last")
            if stopping:
                raise InputError(f"stopped by the system at step {position.step}; the same command goes on from there")
    return position


def train_step(training: Training, batch: Batch, step: int, stop_asked: bool) -> tuple[Scores, bool]:
    """One optimizer step on this process's share of a batch: its images, or its rows of them.

    Returns the scores of the whole batch and whether any process was asked to stop. Raises InputError, on every
    process and before any weight moves, where the loss of any image is not finite.
    """
    config, runtime, rows = training.config, training.runtime, training.rows
    with runtime.accelerator.autocast():
        logits = training.model(normalise(batch.images), batch.seeds)
    losses = segmentation_loss(config.loss, logits, batch.masks, rows.total)
    # The engine averages gradients over processes: this makes of it the mean over the images of the whole batch.
    runtime.accelerator.backward(losses.sum() * (runtime.num_processes / config.batch_size))

    with torch.no_grad():
        scores = dice_from(rows.total(pixel_counts(logits.squeeze(1) > 0, batch.masks)))
        stop = losses.new_tensor(float(stop_asked), dtype=torch.float64)
        sums = torch.stack([losses.double().sum() / rows.size, scores.sum() / rows.size, stop])
        loss, score, stopping = runtime.sum(sums).tolist()
    # Averaged over the processes by now, and so finite on all or on none. fp16's scaler looks for itself.
    norm = clip_gradients(training.model, runtime, config.clip_norm)
    finite = runtime.accelerator.scaler is not None or math.isfinite(norm)
    if not math.isfinite(loss):
        keys = [key for key, value in zip(batch.keys, losses.tolist(), strict=True) if not math.isfinite(value)]
        named = ", ".join(dict.fromkeys(runtime.gather_objects(keys)))
        raise InputError(
            f"step {step + 1}: the loss is {loss} (samples {named}); "
            f"look at these images, or give a smaller --lr than {config.lr}, in another --out"
        )
    if not finite:
        raise InputError(
            f"step {step + 1}: the loss is {loss / config.batch_size} but its gradient is not finite; give a smaller "
            f"--lr than {config.lr}, in another --out"
        )
    training.optimizer.step()
    training.optimizer.zero_grad()
    return Scores(loss / config.batch_size, score / config.batch_size), stopping > 0


def validate(
    training: Training, position: Position, metrics: MetricsFile | None, progress: TrainingProgress | None
) -> Position:
    """Validate, tell of it, and keep the model as `best` where its loss is the lowest so far."""
    scores = validation_scores(training)
    if not math.isfinite(scores.loss):
        raise InputError(
            f"step {position.step}: the validation loss is {scores.loss}; look at the validation images, or give a "
            f"smaller --lr than {training.config.lr}"
        )
    better = scores.loss < position.best_loss
    if better:
        position = replace(position, best_loss=scores.loss, best_dice=scores.dice, evaluations_since_best=0)
        save(training, position, "best")
    else:
        position = replace(position, evaluations_since_best=position.evaluations_since_best + 1)
    if metrics and progress:
        metrics.write(
            step=position.step, epoch=training.epoch(position), split="val", loss=scores.loss, dice=scores.dice
        )
        progress.say(
            f"step {position.step}: validation loss {scores.loss:.4f}, Dice {scores.dice:.4f}"
            f"{', the best so far' if better else ''}"
        )
    return position


@torch.no_grad()
def validation_scores(training: Training) -> Scores:
    """Mean loss and Dice over the validation images, each once, one at a time.

    Processes that have fewer images than others show the network one more that does not count: where weights are
    spread over the processes, all must take part in every pass.
    """
    config, runtime, rows = training.config, training.runtime, training.rows
    training.model.eval()
    total = torch.zeros(3, dtype=torch.float64)
    own = evaluation_samples(training.val, rows.data_rank, rows.num_data_groups, config.data.workers)
    num_rounds = math.ceil(len(training.val) / rows.num_data_groups)
    num_own = len(range(rows.data_rank, len(training.val), rows.num_data_groups))
    extra = [training.val.read(0, 0)] * (num_rounds - num_own)
    for number, sample in enumerate(chain(own, extra)):
        image, mask = prepare_evaluation_sample(sample, config.data)
        try:
            band = rows.cut(len(mask))
        except InputError as error:
            raise InputError(f"validation sample {sample.key}: {error}") from error
        parts = (image_tensor(image)[:, band], torch.from_numpy(mask)[band])
        image, mask = (part.to(runtime.device)[None] for part in parts)
        with runtime.accelerator.autocast():
            logits = training.model(normalise(image))
        loss = segmentation_loss(config.loss, logits, mask, rows.total)
        score = dice_from(rows.total(pixel_counts(logits.squeeze(1) > 0, mask)))
        if number < num_own:
            total += torch.stack([loss.double().sum(), score.sum(), loss.new_ones(())]).cpu() / rows.size
    training.model.train()
    loss, score, count = runtime.sum(total.to(runtime.device)).tolist()
    return Scores(loss / count, score / count)


def save(training: Training, position: Position, name: str) -> None:
    """Write <out>/last, from which training can go on, or <out>/best, the model alone; all processes wait for it."""
    runtime = training.runtime
    model = runtime.accelerator.unwrap_model(training.model)
    optimizer = training.optimizer if name == "last" else None
    writer = Writer(runtime.rank, runtime.num_processes, runtime.gather_objects, training.folder.check)
    keep = training.config.keep_last if name == "last" else 1
    folder = training.config.out / name
    save_state(folder, training.config, position, model, optimizer, training.facts, writer, keep)
    if name == "last":
        training.folder.mark_resumable()
