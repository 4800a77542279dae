"""Before a run begins: whether the launch fits the settings, what to know of the data, the starting weights; and how
the processes end together until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from glioma_dist.config import ModelConfig, TrainConfig
from glioma_dist.config.paths import Url, path_or_url
from glioma_dist.data.background import check_cells
from glioma_dist.data.mixture import Shards, parts_of
from glioma_dist.data.remote_checkpoint import fetch_checkpoint
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.unlisted import describe_unlisted
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.distributed.signals import StopSignal
from glioma_dist.errors import InputError, Interrupted
from glioma_dist.losses import check_losses
from glioma_dist.registry import augmentations
from glioma_dist.scale.spatial_group import SpatialGroup, check_division, strip_edges

Result = TypeVar("Result")


@contextmanager
def explained(context: DistributedContext) -> Iterator[None]:
    """Context manager: what ends this process in its body is raised in words for the user. Where another process of the
    launch ended first, that is its reason: if one is asked to stop while a run starts, all are stopped."""
    try:
        yield
    except (Exception, Interrupted) as error:
        ending = context.explain(error)
        if ending is None or ending is error:
            raise
        raise ending from error


def interruptible(work: Callable[[], Result], context: DistributedContext, stop: StopSignal) -> Result:
    """Return what `work` returns, which communicates with no other process; a signal interrupts it at once.

    All processes call it. Raises RunError on all of them where one fails or is asked to stop.
    """
    result, problem = None, None
    try:
        with stop.immediate():
            result = work()
    except (Exception, Interrupted) as error:
        problem = as_run_error(error, context.seconds_to_answer)
        if problem is None:
            raise
    context.agree(problem)
    return result


def join_spatial_group(config: TrainConfig, context: DistributedContext) -> SpatialGroup:
    """The processes that share this one's images.

    Raises InputError, before any data is read, where the launch does not fit the settings.
    """
    check_division(config.scale.spatial_parallel, context.num_processes)
    num_groups = context.num_processes // config.scale.spatial_parallel
    if config.batch_size % num_groups:
        sharing = "processes" if config.scale.spatial_parallel == 1 else "groups of processes"
        raise InputError(
            f"--batch-size {config.batch_size} cannot be shared by {num_groups} {sharing}: "
            f"give a multiple of {num_groups}"
        )
    strip_edges(config.data.size.height, config.scale.spatial_parallel)
    check_losses(config.loss, config.scale.spatial_parallel, config.model.num_mask_channels)
    for name in config.data.augment:
        augmentations.load(name, "--data.augment")
    return SpatialGroup.join(context, config.scale.spatial_parallel)


def notes_on_data(train: Shards, val: ShardReader | None) -> list[str]:
    """What a user should know of the data. Raises InputError where there is nothing to learn from."""
    parts, others = parts_of(train), [] if val is None else [val]
    notes = [check_cells(parts, "--data.train", is_needed=True)]
    notes += [check_cells([reader], "--data.val", is_needed=False) for reader in others]
    notes += [describe_unlisted(reader) for reader in (*parts, *others)]
    return [note for note in notes if note is not None]


def with_local_weights(model: ModelConfig) -> ModelConfig:
    """The same settings, with starting weights at a URL fetched to this machine. Raises as `fetch_checkpoint`."""
    init = path_or_url(model.init)
    return replace(model, init=str(fetch_checkpoint(init))) if isinstance(init, Url) else model
