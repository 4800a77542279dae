"""The settings of a training run, and which of them may change when it is resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from glioma_dist.config.data import DataConfig
from glioma_dist.config.idle_flags import idle_flags_of_training
from glioma_dist.config.model import ModelConfig
from glioma_dist.config.paths import OutputPath, Url
from glioma_dist.config.recipe import (
    LrSchedule,
    OptimizerName,
    check_recipe,
    check_reproducible_settings,
    idle_flags_of_recipe,
)
from glioma_dist.config.scale import ScaleConfig, check_gradient_accumulation
from glioma_dist.errors import InputError
from glioma_dist.extras import LIBRARIES, require, require_library
from glioma_dist.limits import check_batch_size, check_seed
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.loss_terms import LARGEST_WEIGHT, check_names
from glioma_dist.registry import trackers

COST_FIELDS = (
    "data.train",
    "data.val",
    "data.workers",
    "data.cache",
    "data.cache_size",
    "data.cache_in_memory",
    "epochs",
    "max_steps",
    "schedule_steps",
    "patience",
    "eval_every",
    "save_every",
    "save_every_minutes",
    "keep_last",
    "keep_every",
    "out",
    "stage",
    "resume",
    "deterministic",
    "track",
    "price_per_hour",
    "scale.activation_checkpointing",
    "scale.memory_budget",
    "scale.tile_elements",
    "scale.channels_last",
    "scale.tf32",
    "scale.cudnn_benchmark",
    "scale.compile",
    "scale.spatial_parallel",
    "scale.gradient_accumulation",
    "scale.optimizer_in_backward",
    "scale.timeout_s",
)
"""Fields that may change when a run is resumed: where it runs, how long, how often it validates and saves. Data sets
may move, but their contents must stay the same: the checkpoint has a fingerprint of them. The number of steps that a
learning-rate schedule extends over must stay, too, whichever flags it follows from: the checkpoint has this number."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a U-Net on shards, on one device, or on several with accelerate launch."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    loss: str = DEFAULT_LOSS
    """dice (soft Dice), bce (binary cross-entropy), ce (cross-entropy of several classes), focal, tversky, lovasz,
    boundary-bce or boundary-ce (cross-entropy that weighs boundaries more), one that you registered, your own function
    as MODULE:FUNCTION, or a sum such as dice+bce or dice+0.5*bce. Computed for each image."""
    target_weight: float = 1.0
    """Weight of the loss of the second target of --model.targets: binary cross-entropy of boundary, absolute error of
    distance."""
    batch_size: int = 4
    """Images in a step, over all processes together."""
    optimizer: OptimizerName = "adam"
    """adam, adamw (Adam with decoupled weight decay), or sgd."""
    lr: float = 1e-4
    """Learning rate; with --lr-schedule or --warmup-steps the highest one."""
    momentum: float = 0.9
    """Momentum of sgd; 0: none."""
    nesterov: bool = False
    """Nesterov's momentum for sgd."""
    weight_decay: float = 0.0
    """Weight decay of the weights of convolutions, linear layers and attention; biases, norms, embeddings of positions
    and tokens have none. With adam and sgd it is an L2 term, added to the gradient. With adamw each step multiplies
    these weights by 1 - learning rate * weight decay."""
    lr_schedule: LrSchedule = "constant"
    """How the learning rate falls after the warm-up: constant (it does not), cosine, poly (a power of the steps left),
    or one-cycle (rises by a cosine from 1/25 of the highest rate, then falls by one)."""
    warmup_steps: int | None = None
    """Number of first steps in which the learning rate rises. By default: none; with one-cycle 30 % of the steps."""
    schedule_steps: int | None = None
    """Number of steps of the schedule, warm-up included. By default: all steps of the run. Give it if the run may be
    made longer or shorter when it is resumed."""
    min_lr_factor: float = 0.0
    """Learning rate at the end of the schedule, as a share of the highest."""
    poly_power: float = 0.9
    """Power of the schedule poly: 0.9 in DeepLab and nnU-Net, 1 in SegFormer."""
    encoder_lr_factor: float = 1.0
    """Learning rate of the encoder, as a share of the decoder's, for example 0.1 for pretrained weights."""
    freeze_encoder: bool = False
    """Train the decoder only. The encoder keeps its weights and running statistics, computes as in prediction, and
    keeps no activations."""
    clip_norm: float | None = None
    """Clip gradients: their total norm is scaled down to at most this value. By default: no clipping."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay, for example 0.999, beside the weights that are
    trained. Validation, best/ and later commands use the average. The decay of step k is at most (1 + k) / (10 + k), so
    that the starting weights are soon forgotten. By default: no average."""
    seed: int = 0
    """Random seed of the starting weights, the order of the samples, augmentation and stochastic depth."""
    epochs: int = 60
    """Train for this many passes over the training data."""
    max_steps: int | None = None
    """Stop after this many steps, even if --epochs allows more."""
    eval_every: int | None = None
    """Number of steps between validations. By default: one validation after each epoch."""
    patience: int | None = None
    """Stop after this many validations in a row without a lower validation loss. By default: never."""
    save_every: int | None = None
    """Number of steps between checkpoints `last`, which is also written at each validation and at the end."""
    save_every_minutes: float | None = None
    """Minutes between checkpoints `last`, beside those at fixed steps. By default: at fixed steps only."""
    keep_last: int = 2
    """Number of checkpoints to keep; a run resumes from the newest undamaged one of `last`, `last.1`, …"""
    keep_every: int | None = None
    """Keep the checkpoint of every so many steps for good, in steps/, with hashes of all batches and losses, so that
    glioma-dist verify can compute any stretch of the run again. By default: none is kept."""
    deterministic: bool = False
    """On a GPU, make all runs of the same command on the same machine bit-identical. This is slower. On a CPU they are
    always bit-identical."""
    reproducible: bool = False
    """Make the weights after any number of steps bit-identical on any number of processes, on equal hardware and with
    equal versions. It implies --deterministic and computes each image alone, on a CPU with one thread a process. It
    needs a network without batch norm: --model.norm group and an encoder such as mit_b0 (docs/reproducible.md)."""
    track: tuple[str, ...] = ()
    """Experiment trackers that also get what metrics.jsonl gets: tensorboard, wandb, mlflow, trackio, another one that
    accelerate knows (clearml, comet_ml, dvclive, swanlab), or one that you registered."""
    price_per_hour: float | None = None
    """Price of an hour of the whole run, all its GPUs together, in any currency: the last line then has the cost."""
    out: OutputPath = Path("runs/run")
    """Folder of the run: config.json, run.json, metrics.jsonl, curves.png, last/, last.1/, best/. Or a URL (s3://,
    gs://, az://, hf://): the run is staged in a local folder, and each checkpoint is uploaded
    (docs/guides/buckets.md)."""
    stage: Path | None = None
    """With a URL as --out: local folder in which the run is staged. By default: a folder of the user's cache that
    belongs to this URL."""
    resume: Literal["auto", "never"] = "auto"
    """auto: resume the run in --out, if there is one. never: start a new run; --out must be empty."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        return idle_flags_of_training(self) + idle_flags_of_recipe(self)

    def validate(self) -> None:
        self.data.validate()
        self.model.validate()
        self.scale.validate()
        check_names(self.loss, bool(self.model.classes))
        if not 0 < self.target_weight <= LARGEST_WEIGHT:
            raise InputError(f"--target-weight {self.target_weight}: give a number above 0, for example 1")
        check_batch_size(self.batch_size)
        for name in ("epochs", "max_steps", "eval_every", "patience", "save_every", "keep_last", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if self.keep_every is not None and isinstance(self.out, Url):
            raise InputError(
                f"--keep-every {self.keep_every}: keeps checkpoints in a local folder; give one as --out, or omit it"
            )
        if self.save_every_minutes is not None and not 0 < self.save_every_minutes < math.inf:
            raise InputError(f"--save-every-minutes {self.save_every_minutes}: give a number above 0, for example 10")
        check_recipe(self)
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InputError(f"--clip-norm {self.clip_norm}: give a number above 0, for example 1.0")
        if self.ema_decay is not None:
            check_ema_decay(self.ema_decay)
        check_gradient_accumulation(
            "--scale.gradient-accumulation", self.scale.gradient_accumulation, self.batch_size, self.model.norm
        )
        self.scale.check_optimizer_in_backward(self.clip_norm, self.reproducible)
        check_trackers(self.track)
        if self.price_per_hour is not None and not 0 < self.price_per_hour < math.inf:
            raise InputError(f"--price-per-hour {self.price_per_hour}: give a number above 0, for example 2.50")
        if self.deterministic and self.scale.cudnn_benchmark:
            raise InputError(
                "--deterministic and --scale.cudnn-benchmark cannot be combined: cuDNN would choose its algorithms by "
                "their time, and their results differ in the last bits; omit one of them"
            )
        if self.reproducible:
            check_reproducible_settings(self)
        if self.patience is not None and self.data.val is None:
            raise InputError("--patience needs validation: give a folder of shards with --data.val")
        check_seed("--seed", self.seed)


def check_ema_decay(value: float) -> None:
    """Raises InputError if `value` is no decay of a moving average."""
    if not 0 < value < 1:
        raise InputError(f"--ema-decay {value}: give a number between 0 and 1, for example 0.999")


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises InputError for a tracker that is unknown, is named twice, or lacks its library; imports none."""
    told = f"--track {' '.join(names)}"
    entries = [trackers.find(name, "--track") for name in names]
    if len({entry.name for entry in entries}) != len(entries):
        raise InputError(f"{told}: name each tracker once")
    for entry in entries:
        if entry.name in LIBRARIES and entry.distribution is None:
            require(entry.name, f"--track {entry.name}")
        elif entry.library is not None:
            require_library(entry.library, entry.package or entry.library, f"--track {entry.name}")
