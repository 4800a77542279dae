"""Validation: mean loss and Dice over the validation images, and which model is the best so far."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from glioma_dist.data.loader import evaluation_samples, image_tensor, prepare_evaluation_sample
from glioma_dist.data.sample import Sample
from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.errors import InputError, Interrupted, NonFiniteError, RunError
from glioma_dist.evaluation.dice import dice_from, pixel_counts
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import normalise
from glioma_dist.training.reporter import Reporter
from glioma_dist.training.state import Position
from glioma_dist.training.trainer import Scores, Training, save


def validate(training: Training, position: Position, reporter: Reporter | None) -> Position:
    """Validate, report it, and keep the model as `best` where its loss is the lowest so far.

    Raises NonFiniteError where the loss is not finite.
    """
    scores = validation_scores(training)
    if not math.isfinite(scores.loss):
        error = NonFiniteError(
            f"step {position.step}: the validation loss is {scores.loss}; look at the validation images, or give a "
            f"smaller --lr than {training.config.lr}, in another --out"
        )
        error.is_shared = True
        raise error
    better = scores.loss < position.best_loss
    position = replace(position, validated_step=position.step)
    if better:
        position = replace(position, best_loss=scores.loss, best_dice=scores.dice, evaluations_since_best=0)
        save(training, position, "best", reporter)
    else:
        position = replace(position, evaluations_since_best=position.evaluations_since_best + 1)
    if reporter:
        reporter.validated(position.step, training.epoch(position), *scores, better)
    return position


@torch.no_grad()
def validation_scores(training: Training) -> Scores:
    """Mean loss and Dice over the validation images, each once, one at a time.

    Processes that have fewer images than others show the network one more that does not count: where weights are
    spread over the processes, all must take part in every pass. Before each image the processes agree to continue, so
    that a request to stop, or an image that cannot be read, ends all of them.
    """
    config, runtime, rows = training.config, training.runtime, training.rows
    training.model.eval()
    total = torch.zeros(3, dtype=torch.float64)
    num_rounds = math.ceil(len(training.val) / rows.num_data_groups)
    num_own = len(range(rows.data_rank, len(training.val), rows.num_data_groups))
    own = evaluation_samples(
        training.val, rows.data_rank, rows.num_data_groups, config.data.workers, runtime.seconds_to_answer
    )
    with closing(own):
        for number in range(num_rounds):
            pair, problem = _next_pair(training, own if number < num_own else None)
            runtime.agree(problem)
            sums = _score(training, *pair)
            if number < num_own:
                total += sums
    training.model.train()
    loss, score, count = runtime.sum(total.to(runtime.device)).tolist()
    return Scores(loss / count, score / count)


def _next_pair(
    training: Training, own: Iterator[Sample] | None
) -> tuple[tuple[np.ndarray, np.ndarray] | None, RunError | None]:
    """The next of this process's images with its mask, as the network is shown it; that of the first sample of all
    where `own` is None. Or what prevents it."""
    try:
        with training.stop.immediate():
            sample = training.val.read(0, 0) if own is None else next(own)
            image, mask = prepare_evaluation_sample(sample, training.config.data)
            try:
                training.rows.cut(len(mask))
            except InputError as error:
                raise InputError(f"validation sample {sample.key}: {error}") from error
    except (Exception, Interrupted) as error:
        problem = as_run_error(error, training.runtime.seconds_to_answer)
        if problem is None:
            raise
        return None, problem
    return (image, mask), None


def _score(training: Training, image: np.ndarray, mask: np.ndarray) -> Tensor:
    """Loss, Dice and 1 of one image, (3,) fp64 on the CPU, divided among the processes that share it."""
    config, runtime, rows = training.config, training.runtime, training.rows
    band = rows.cut(len(mask))
    parts = (image_tensor(image)[:, band], torch.from_numpy(mask)[band])
    images, masks = (part.to(runtime.device)[None] for part in parts)
    with runtime.accelerator.autocast():
        logits = training.model(normalise(images))
    loss = segmentation_loss(config.loss, logits, masks, rows.total)
    score = dice_from(rows.total(pixel_counts(logits.squeeze(1) > 0, masks)))
    return torch.stack([loss.double().sum(), score.sum(), loss.new_ones(())]).cpu() / rows.size
