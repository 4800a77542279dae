"""Checks of the training recipe: optimizer, weight decay, learning-rate schedule, what of the encoder is trained.

The fields themselves are in `TrainConfig`. Its type is Any here, because its module imports this one.
"""

from __future__ import annotations

from typing import Any, Literal

from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.errors import InputError

OptimizerName = Literal["adam", "adamw", "sgd"]
LrSchedule = Literal["constant", "cosine", "poly", "one-cycle"]


def check_recipe(config: Any) -> None:
    """Raises InputError for a value of the recipe that cannot be used."""
    if not 0 < config.lr < 1e3:
        raise InputError(f"--lr {config.lr}: give a number between 0 and 1000, for example 1e-4")
    check_momentum(config.momentum)
    if config.nesterov and config.optimizer == "sgd" and config.momentum == 0:
        raise InputError("--nesterov needs momentum: give --momentum above 0, for example 0.9, or omit --nesterov")
    if not 0 <= config.weight_decay < 1e3:
        raise InputError(f"--weight-decay {config.weight_decay}: give a number from 0 to 1000, for example 0.01")
    if not 0 < config.encoder_lr_factor < 1e3:
        raise InputError(
            f"--encoder-lr-factor {config.encoder_lr_factor}: give a number between 0 and 1000, for example 0.1; "
            "--freeze-encoder leaves the encoder as it is"
        )
    if config.freeze_encoder and config.model.init == "random":
        raise InputError(
            "--freeze-encoder: the encoder would keep random weights; give --model.init imagenet or a checkpoint, or "
            "omit the flag"
        )
    if config.model.encoder_norm == "frozen" and config.model.init == "random":
        raise InputError(
            "--model.encoder-norm frozen: the norms of random weights have no statistics; give --model.init imagenet "
            "or a checkpoint, or omit the flag"
        )
    _check_schedule(config)


def check_reproducible_settings(config: Any) -> None:
    """Raises InputError for settings with which the bits of a run would depend on the number of processes, or that
    nobody has proved."""
    refused = (
        ("--scale.spatial-parallel", config.scale.spatial_parallel > 1, "omit one of them"),
        ("--scale.compile", config.scale.compile, "omit one of them"),
        ("--scale.cudnn-benchmark", config.scale.cudnn_benchmark, "cuDNN would choose its algorithms by their time"),
        ("--model.norm batch", config.model.norm == "batch", "each image is computed alone; give --model.norm group"),
    )
    for flag, is_given, why in refused:
        if is_given:
            raise InputError(f"--reproducible and {flag} cannot be combined: {why}")


def check_momentum(momentum: float) -> None:
    """Raises InputError for a momentum that SGD cannot use."""
    if not 0 <= momentum < 1:
        raise InputError(f"--momentum {momentum}: give a number from 0 to below 1, for example 0.9")


def _check_schedule(config: Any) -> None:
    if not 0 <= config.min_lr_factor < 1:
        raise InputError(f"--min-lr-factor {config.min_lr_factor}: give a number from 0 to below 1, for example 0.01")
    if not 0 < config.poly_power <= 100:
        raise InputError(f"--poly-power {config.poly_power}: give a number between 0 and 100, for example 0.9")
    if config.warmup_steps is not None and config.warmup_steps < 0:
        raise InputError(f"--warmup-steps {config.warmup_steps}: give 0 or more")
    steps = config.schedule_steps
    if steps is not None and steps < 1:
        raise InputError(f"--schedule-steps {steps}: give 1 or more")
    if config.lr_schedule != "constant" and steps is not None:
        check_warmup(config, steps, f"--schedule-steps {steps}")


def check_warmup(config: Any, num_steps: int, told: str) -> None:
    """Raises InputError if the warm-up leaves no step of the schedule. told: what says how long that is."""
    if (config.warmup_steps or 0) >= num_steps:
        raise InputError(
            f"--warmup-steps {config.warmup_steps}: as long as the whole schedule ({told}); give fewer than {num_steps}"
        )


def schedule_steps(config: Any, num_steps: int) -> int | None:
    """Return the number of steps that the learning-rate schedule extends over; None if the rate does not depend on it.

    num_steps: of the run, by --epochs and --max-steps. Raises InputError if the schedule does not fit the run.
    """
    if config.lr_schedule == "constant":
        return None
    steps = config.schedule_steps or num_steps
    check_warmup(config, steps, f"{steps} steps")
    if steps < num_steps and config.min_lr_factor == 0:
        raise InputError(
            f"--schedule-steps {steps}: the learning rate would be 0 after that, and the run has {num_steps} steps; "
            f"give --schedule-steps {num_steps}, --max-steps {steps}, or a --min-lr-factor above 0"
        )
    return steps


def idle_flags_of_recipe(config: Any) -> list[str]:
    """Return a text for each flag of the recipe that other flags leave without an effect."""
    is_sgd, schedule = config.optimizer == "sgd", config.lr_schedule
    metadata = (
        ("momentum", is_sgd, f"with --optimizer {config.optimizer}"),
        ("nesterov", is_sgd, f"with --optimizer {config.optimizer}"),
        ("schedule_steps", schedule != "constant", "with --lr-schedule constant"),
        ("min_lr_factor", schedule != "constant", "with --lr-schedule constant"),
        ("poly_power", schedule == "poly", f"with --lr-schedule {schedule}"),
        ("encoder_lr_factor", not config.freeze_encoder, "with --freeze-encoder"),
    )
    return idle_flags(config, metadata)


def num_moments(optimizer: OptimizerName, momentum: float) -> int:
    """Return how many numbers the optimizer keeps for each weight: Adam's two moments, or SGD's momentum."""
    return 2 if optimizer != "sgd" else int(momentum > 0)
