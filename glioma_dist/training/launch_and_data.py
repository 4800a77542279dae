"""Before a run begins: whether the launch fits the settings, what to know of the data, the starting weights; and how
the processes end together until then."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from glioma_dist.config import ModelConfig, TrainConfig
from glioma_dist.config.model import is_weight_file
from glioma_dist.config.networks import hub_name
from glioma_dist.config.paths import Url, path_or_url
from glioma_dist.data.background import check_cells, note_on_coverage
from glioma_dist.data.cache_folder import cache_folder
from glioma_dist.data.mixture import Shards, parts_of
from glioma_dist.data.remote_checkpoint import fetch_checkpoint, find_remote
from glioma_dist.data.remote_weights import fetch_weights, weights_folder
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import Patience
from glioma_dist.data.shards.unlisted import describe_unlisted
from glioma_dist.data.shared_images import notes_on_shared_data
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.launcher import alike_on_a_machine
from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.distributed.signals import StopSignal
from glioma_dist.errors import InputError, Interrupted, UnavailableError, one_line
from glioma_dist.losses import check_losses
from glioma_dist.model.pretrained.download import NotReachedError, within_bound
from glioma_dist.registry import augmentations
from glioma_dist.scale.spatial_group import SpatialGroup, check_division, strip_edges
from glioma_dist.training.run_warnings import SHARED_GROUPS, SHARED_IMAGES, UNIFORM_MASKS

FEW_TRIES = Patience(attempts=2)
"""Of a server that starting weights are asked of; `within_bound` says how long."""

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


@alike_on_a_machine()
def join_spatial_group(config: TrainConfig, context: DistributedContext) -> SpatialGroup:
    """The processes that share this one's images.

    Raises InputError, before any data is read, where the launch does not fit the settings.
    """
    check_division(config.scale.spatial_parallel, context.num_processes)
    num_groups = context.num_processes // config.scale.spatial_parallel
    if config.batch_size < num_groups or (config.batch_size % num_groups and not config.reproducible):
        sharing = "processes" if config.scale.spatial_parallel == 1 else "groups of processes"
        raise InputError(
            f"--batch-size {config.batch_size} cannot be shared by {num_groups} {sharing}: "
            f"give a multiple of {num_groups}"
        )
    strip_edges(config.data.size.height, config.scale.spatial_parallel)
    check_losses(config.loss, config.scale.spatial_parallel)
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


def warnings_on_data(train: Shards, val: ShardReader | None, shares: Sequence[float]) -> list[tuple[str, str]]:
    """What will probably make a run useless: kinds and texts of warnings. shares: coverage of some training masks."""
    parts = parts_of(train)
    found = [(UNIFORM_MASKS, note_on_coverage(shares, parts))]
    if val is not None:
        notes = notes_on_shared_data(parts, val)
        found += [(SHARED_IMAGES, notes.images), (SHARED_GROUPS, notes.groups)]
    return [(kind, text) for kind, text in found if text is not None]


def check_classes(train: Shards, val: ShardReader | None, model: ModelConfig) -> None:
    """Raises InputError where the masks have other classes than the network is to tell, with the flag that fits."""
    for flag, reader in (("--data.train", train), ("--data.val", val)):
        if reader is not None and tuple(reader.classes) != model.classes:
            theirs, ours = (one_line(shlex.join(each), 120) for each in (reader.classes, model.classes))
            fitting = f"give --model.classes {theirs}" if theirs else "omit --model.classes"
            raise InputError(
                f"{flag}: its masks have {f'the classes {theirs}' if theirs else 'one class'}, the network "
                f"{ours or 'one class'}; {fitting}, or convert the data again"
            )


def with_local_weights(model: ModelConfig) -> ModelConfig:
    """The same settings, with starting weights at a URL fetched to this machine. A repository of the hub stays a name.

    Raises as `fetch_checkpoint` and `fetch_weights`; within 10 s where the server does not answer.
    """
    init = path_or_url(model.init)
    if not isinstance(init, Url) or hub_name(model.init) is not None:
        return model
    what = "file" if is_weight_file(init) else "folder"
    try:
        if what == "file":
            place = within_bound(lambda: fetch_weights(init, model.init_sha256, FEW_TRIES), weights_folder(), str(init))
        else:
            within_bound(lambda: find_remote(init, FEW_TRIES), cache_folder(), None)
            place = fetch_checkpoint(init)
    except (NotReachedError, UnavailableError) as error:
        raise UnavailableError(
            f"--model.init {init}: cannot be fetched ({one_line(error, 200)}); fetch it by hand where there is a "
            f"network, and give the {what} with --model.init"
        ) from error
    return replace(model, init=str(place))
