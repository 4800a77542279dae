"""What a run needs before its first step: data, model and optimizer, as new or as they were at its checkpoint."""

from __future__ import annotations

from glioma_dist.config import TrainConfig
from glioma_dist.data.background import coverage
from glioma_dist.data.image_statistics import training_statistics
from glioma_dist.data.mixture import open_training_data, open_validation_data
from glioma_dist.data.worker_pool import WorkerPool
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.signals import StopSignal
from glioma_dist.losses import check_losses
from glioma_dist.model.checkpoint import STATISTICS
from glioma_dist.model.unet import build_model
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.buckets import fix_buckets
from glioma_dist.scale.fsdp import choose_shards
from glioma_dist.scale.loss_scale import load_scaler_state
from glioma_dist.scale.micro_batches import check_micro_batches
from glioma_dist.scale.optimizer import make_optimizer
from glioma_dist.scale.optimizer_in_backward import OptimizerInBackward, check_optimizer_in_backward
from glioma_dist.scale.scale_model import resolve_layout, scale_model
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.training.launch_and_data import (
    check_classes,
    interruptible,
    notes_on_data,
    warnings_on_data,
    with_local_weights,
)
from glioma_dist.training.learning_rate import LearningRate
from glioma_dist.training.memory import choose_level
from glioma_dist.training.reproducible import (
    ARITHMETIC,
    ReproducibleSteps,
    check_reproducible,
    check_same_arithmetic,
    describe_arithmetic,
    pinned_level,
    read_exponents,
)
from glioma_dist.training.resume import SCHEDULE_STEPS, check_same_data, check_same_schedule
from glioma_dist.training.run_folder import RunFolder
from glioma_dist.training.state import TrainState, load_optimizer, load_weights, read_scaler
from glioma_dist.training.trainer import Trainer, num_steps
from glioma_dist.training.weight_average import make_average


def prepare(
    config: TrainConfig,
    context: DistributedContext,
    group: SpatialGroup,
    folder: RunFolder,
    stop: StopSignal,
    pool: WorkerPool,
) -> tuple[Trainer, TrainState]:
    """Open the data, make model and optimizer, and load the run's checkpoint into them. Raises InputError."""
    old = folder.checkpoint

    def read() -> tuple:
        """What a process can do by itself, and what can take long, as where a store does not answer."""
        train, sampler = open_training_data(config.data, config.batch_size, config.seed)
        val = open_validation_data(config.data)
        check_classes(train, val, config.model)
        check_losses(config.loss, has_ignore=train.has_ignore or (val is not None and val.has_ignore))
        notes = notes_on_data(train, val)
        if context.is_main:
            for note in notes:
                print(f"note: {note}", flush=True)
        warnings: list[tuple[str, str]] = []
        statistics = old.metadata.get(STATISTICS) if old else None
        if old is None and context.is_main:  # who writes the checkpoints
            shares: list[float] = []
            found = training_statistics(train, config.data, lambda sample: shares.append(coverage(sample.mask)))
            statistics = found and found.to_dict()
            warnings = warnings_on_data(train, val, shares)
        tell = (lambda line: print(f"note: {line}", flush=True)) if context.is_main else (lambda line: None)
        built = build_model(with_local_weights(config.model), config.seed, tell)
        return train, sampler, val, statistics, warnings, *built

    train, sampler, val, statistics, warnings, model, lineage = interruptible(read, context, stop)
    fingerprints = {"train": train.fingerprint, "val": val.fingerprint if val else None}
    metadata = {"lineage": [*lineage, *train.lineage], "fingerprints": fingerprints, STATISTICS: statistics}
    rate = LearningRate.of(config, num_steps(config, sampler))
    metadata |= {} if rate.num_steps is None else {SCHEDULE_STEPS: rate.num_steps}
    if config.freeze_encoder:
        model.encoder.freeze()
    if context.num_processes > 1:
        model = synchronise_batch_norm(model, context.device)
    if not config.reproducible:
        check_micro_batches(model, config.model, config.scale.gradient_accumulation, config.batch_size // group.dp_size)
    check_optimizer_in_backward(config, context)
    kind = pinned_level(config, old) or choose_level(config, context)
    if config.reproducible:
        check_reproducible(config, context, model)
        metadata[ARITHMETIC] = describe_arithmetic(config, context, kind)
        if old is not None:
            check_same_arithmetic(config, old, metadata[ARITHMETIC])
    scale_model(model, resolve_layout(config, context), kind, group, context.device, context.accelerator.is_fsdp2)
    model.to(context.device)
    optimizer = make_optimizer(model, config, context.accelerator.scaler is not None)
    state = TrainState()
    if old is not None:
        check_same_data(config, old, fingerprints)
        check_same_schedule(config, old, rate.num_steps)
        state = load_weights(old, model)
    choose_shards(model, context)
    if config.reproducible:  # unwrapped: DDP would send gradients, and average them in an order of its own
        model = context.accelerator.prepare_model(model, evaluation_mode=True)
        optimizer = context.accelerator.prepare_optimizer(optimizer)
    else:
        model, optimizer = context.accelerator.prepare(model, optimizer)
    fix_buckets(model)
    if old is not None:
        load_optimizer(old, context.accelerator.unwrap_model(model), optimizer)
        load_scaler_state(context.accelerator, read_scaler(old))
    steps = None
    if config.reproducible:
        exponents = read_exponents(old) if old is not None else None
        steps = ReproducibleSteps(context.accelerator.unwrap_model(model), context, config.batch_size, exponents)
    average = make_average(config, context.accelerator.unwrap_model(model), old)
    parts = (train, val, sampler, model, optimizer, rate, kind, group, metadata, folder, stop, pool)
    in_backward = OptimizerInBackward(optimizer) if config.scale.optimizer_in_backward else None
    trainer = Trainer(config, context, *parts, average=average, reproducible=steps, in_backward=in_backward)
    for kind, text in warnings:
        trainer.warnings.tell(kind, text)
    return trainer, state
