"""The gradients of a training step, and the errors that end a run where they, or the loss, are not finite."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from glioma_dist.data.loader import Batch
from glioma_dist.errors import NonFiniteError, RunError
from glioma_dist.scale.gradients import compute_gradients, read_numbers
from glioma_dist.scale.optimizer import set_learning_rate
from glioma_dist.training.trainer import Trainer


def let_weights_move(trainer: Trainer, step: int) -> None:
    """Set the step's learning rate. From now on weights that have moved cannot be put back. Waits until a checkpoint of
    the step before has its copies."""
    trainer.saver.let_tensors_change()
    set_learning_rate(trainer.optimizer, trainer.learning_rate.at(step))
    trainer.guard.weights_move = True


def check_loss(trainer: Trainer, batch: Batch, step: int, loss: float, losses: Tensor) -> None:
    """Raises NonFiniteError if the sum of the batch's losses is not finite."""
    if math.isfinite(loss):
        return
    keys = [key for key, value in zip(batch.keys, losses.tolist(), strict=True) if not math.isfinite(value)]
    named = ", ".join(dict.fromkeys(trainer.context.gather_objects(keys)))
    raise shared(
        NonFiniteError(
            f"step {step + 1}: the loss is {loss} (samples {named}); "
            f"look at these images, or give a smaller --lr than {trainer.config.lr}, in another --out"
        )
    )


def compute_mean(trainer: Trainer, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """Give each parameter the mean gradient of the whole batch; with the optimizer in the backward pass, take the step
    instead. Returns logits and losses of this process's images."""
    config, context = trainer.config, trainer.context
    compute = partial(
        compute_gradients,
        trainer.model,
        batch.images,
        batch.masks,
        partial(trainer.loss, group=trainer.spatial_group),
        context.accelerator.autocast,
        seeds=batch.seeds,
        backward=context.accelerator.backward,
    )
    if trainer.reproducible is not None:
        return trainer.reproducible.compute(partial(compute, num_micro_batches=len(batch.images)))
    mean = partial(
        compute,
        # The engine averages gradients over processes: this makes of it the mean over the images of the whole batch.
        factor=context.num_processes / config.batch_size,
        num_micro_batches=config.scale.gradient_accumulation,
        no_sync=partial(context.accelerator.no_sync, trainer.model),
    )
    if trainer.in_backward is None:
        return mean()

    def check(losses: Tensor) -> None:
        check_loss(trainer, batch, step, *read_numbers(losses.double().sum()), losses)  # waits for the GPU
        let_weights_move(trainer, step)

    with trainer.in_backward.stepping():
        return mean(after_forward=check)


def shared(error: RunError) -> RunError:
    """Mark an error that every process of the run raises at this point."""
    error.is_shared = True
    return error
