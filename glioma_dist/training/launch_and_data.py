"""Before a run begins: whether the launch fits the settings, what to know of the data, the starting weights."""

from __future__ import annotations

from dataclasses import replace

from glioma_dist.config import ModelConfig, TrainConfig
from glioma_dist.config.paths import Url, path_or_url
from glioma_dist.data.background import check_cells
from glioma_dist.data.mixture import Shards, parts_of
from glioma_dist.data.remote_checkpoint import fetch_checkpoint
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.unlisted import describe_unlisted
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.errors import InputError
from glioma_dist.losses import check_splittable
from glioma_dist.registry import augmentations
from glioma_dist.scale.spatial_group import SpatialGroup, check_division, strip_edges


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
    check_splittable(config.loss, config.scale.spatial_parallel)
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
