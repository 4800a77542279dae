"""Validation: mean loss and Dice over the validation images, and which model is the best so far."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from glioma_dist.data.batch import Batch
from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.errors import InputError, Interrupted, NonFiniteError, RunError
from glioma_dist.evaluation.dice import class_counts, dice_from
from glioma_dist.scale.checkpoint_plan import layers_in_tiles
from glioma_dist.scale.gradients import normalised
from glioma_dist.scale.kernel_limits import check_forward, forward_fits
from glioma_dist.scale.tile_size import tile_size
from glioma_dist.size import Size
from glioma_dist.training.overlays import Overlays
from glioma_dist.training.reporter import Reporter
from glioma_dist.training.reproducible import sums_in_order
from glioma_dist.training.resume import BEST
from glioma_dist.training.run_warnings import UNIFORM_PREDICTION
from glioma_dist.training.state import TrainState
from glioma_dist.training.trainer import Scores, Trainer
from glioma_dist.training.validation_watch import count_cells

NUM_SUMS = 6
"""Loss, Dice, number of images, and `count_cells`."""


def validate(trainer: Trainer, state: TrainState, reporter: Reporter | None) -> TrainState:
    """Validate, report it, and keep the model as `best` where its loss is the lowest so far.

    Raises NonFiniteError where the loss is not finite.
    """
    overlays, watch = trainer.overlays, trainer.validation_watch
    if reporter:
        watch.tell = reporter.validating
    scores = validation_scores(trainer, overlays) if overlays.are_wanted else validation_scores(trainer)
    if not math.isfinite(scores.loss):
        error = NonFiniteError(
            f"step {state.step}: the validation loss is {scores.loss}; look at the validation images, or give a "
            f"smaller --lr than {trainer.config.lr}, in another --out"
        )
        error.is_shared = True
        raise error
    better = scores.loss < state.best_loss
    state = replace(state, validated_step=state.step)
    if better:
        state = replace(state, best_loss=scores.loss, best_dice=scores.dice, evaluations_since_best=0)
        trainer.saver.save(state, BEST)
    else:
        state = replace(state, evaluations_since_best=state.evaluations_since_best + 1)
    if reporter:
        reporter.validated(
            state.step, trainer.epoch(state), scores.loss, scores.dice, better, overlays, scores.dice_by_class
        )
        reporter.warn(UNIFORM_PREDICTION, watch.judge(is_last=state.step >= trainer.num_steps), state.step)
    return state


@torch.no_grad()
def validation_scores(trainer: Trainer, overlays: Overlays | None = None) -> Scores:
    """Mean loss and Dice over the validation images, each once, one at a time.

    Processes that have fewer images than others show the network one more that does not count: where weights are
    spread over the processes, all must take part in every pass. Before each image the processes agree to continue, so
    that a request to stop, or an image that cannot be read, ends all of them. overlays: get the first images.
    """
    context, group = trainer.context, trainer.spatial_group
    trainer.model.eval()
    if overlays is not None:
        overlays.begin()
    # On the device, and read once: for each read the CPU waits for the GPU.
    num_classes = trainer.outputs.num_mask_channels - 1
    num_images = len(trainer.val)
    # With --reproducible a row for each image: they are added in one order, whichever process has them.
    num_rows = num_images if trainer.config.reproducible else 1
    total = torch.zeros(num_rows, NUM_SUMS + num_classes, dtype=torch.float64, device=context.device)
    num_own = len(range(group.dp_rank, num_images, group.dp_size))
    with trainer.evaluated_weights(), closing(iter(trainer.validation_images)) as images:
        for number in range(math.ceil(num_images / group.dp_size)):
            context.whereabouts.wait_for_data(f"validation image {number + 1}")
            image, problem = _next_image(trainer, images)
            trainer.saver.agree(problem)
            sums = _score(trainer, image, overlays)
            if number < num_own:
                total[(group.dp_rank + number * group.dp_size) % num_rows] += sums
            trainer.validation_watch.tell(min(num_images, (number + 1) * group.dp_size), num_images)
    trainer.model.train()
    loss, score, count, *others = sums_in_order(context.sum(total))
    trainer.validation_watch.counted(others[: NUM_SUMS - 3])
    return Scores(loss / count, score / count, tuple(each / count for each in others[NUM_SUMS - 3 :]))


def _next_image(trainer: Trainer, images: Iterator[Batch]) -> tuple[Batch | None, RunError | None]:
    """The next of this process's images, or what prevents it."""
    try:
        with trainer.stop.immediate():
            image = next(images)
        _check_size(trainer, image)
        return image, None
    except (Exception, Interrupted) as error:
        problem = as_run_error(error, trainer.context.seconds_to_answer)
        if problem is None:
            raise
        return None, problem


def _check_size(trainer: Trainer, image: Batch) -> None:
    """Raises InputError for an image, larger than those of training, that is too large for a GPU's kernels."""
    config, in_tiles = trainer.config, layers_in_tiles(trainer.level)
    size = Size(image.images.shape[-1], image.height)
    asked = (config.model.encoder, size, trainer.spatial_group.size)
    tiles = tile_size(config.scale.tile_elements, trainer.context.device)
    where = f"validation image {image.keys[0]}"
    try:
        check_forward(*asked, tiles, in_tiles, "cut it into fields of")
    except InputError as error:
        if not in_tiles and forward_fits(*asked, tiles, in_tiles=True):
            told = f"{where} of {size} is too large for a GPU's kernels; give --scale.activation-checkpointing full"
            raise InputError(told) from error
        raise InputError(f"{where}: {error}") from error


def _score(trainer: Trainer, image: Batch, overlays: Overlays | None) -> Tensor:
    """Loss, Dice, 1, `count_cells` (3) and, of several classes, the Dice of each, of one image: fp64 on the device,
    divided among the processes that share it."""
    context, group, outputs = trainer.context, trainer.spatial_group, trainer.outputs
    group.cut(image.height)
    with context.accelerator.autocast():
        logits = trainer.model(normalised(trainer.model, image.images))
    loss = trainer.loss(logits, image.masks, group=group)
    predicted, reference = outputs.predicted(logits), outputs.mask(image.masks)
    by_class = dice_from(group.total(class_counts(predicted, reference, outputs.num_mask_channels)))[0]
    if overlays is not None:
        overlays.add(image.images, reference, predicted, group)
    scores = torch.stack([loss.double().sum(), by_class.mean(), loss.new_ones(())]) / group.size
    several = by_class if outputs.num_mask_channels > 1 else by_class[:0]
    # Each process counts the cells of its own rows.
    return torch.cat([scores, count_cells(predicted, reference), several / group.size])
