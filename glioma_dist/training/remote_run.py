"""A run that belongs to a URL: staged in a local folder, resumed from the URL, uploaded while it trains.

At the URL: `checkpoints.json`, `checkpoints/NAME/`, `metrics/NUMBER.jsonl`, and the run folder's other files.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from glioma_dist.config import TrainConfig
from glioma_dist.config.paths import StagedFolder, Url
from glioma_dist.data.remote_checkpoint import INDEX, CheckpointIndex, parse_index
from glioma_dist.data.shards.storage import Patience
from glioma_dist.data.shards.store import Store
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.distributed.signals import StopSignal
from glioma_dist.errors import InputError, Interrupted, RunError, StopRequested, one_line
from glioma_dist.files import MAX_JSON_BYTES, remove_tree
from glioma_dist.training.lease import LEASE, Lease
from glioma_dist.training.remote_copy import bring_here, newest_here, remove_leftovers
from glioma_dist.training.resume import BEST, HASHES, LAST
from glioma_dist.training.stage import Stage, default_stage, warn
from glioma_dist.training.status import mark_not_uploaded
from glioma_dist.training.trackers.names import IDS
from glioma_dist.training.uploader import Uploader

UPLOAD_PATIENCE = Patience(attempts=11, seconds=30.0, wait_seconds=0.5)
"""A store may be away for some 8 minutes: training continues meanwhile."""
SECONDS_AFTER_STOP = 25.0
"""From a request to stop, or an error, until the upload is given up: launchers kill after 30 s."""
OWN_NAMES = {
    *(INDEX, LEASE, "checkpoints", "metrics", "metrics.jsonl", "config.json", "run.json", "status.json", "curves.png"),
    *("run.json.damaged", HASHES, IDS),
}
"""What a run can have written to a URL before its first checkpoint."""


@dataclass
class Bucket:
    """What the first process of a run at a URL has open."""

    url: Url
    run: Path
    uploader: Uploader


@contextmanager
def staged(
    config: TrainConfig, context: DistributedContext, stop: StopSignal
) -> Iterator[tuple[TrainConfig, Uploader | None]]:
    """Within it, the run of a URL is staged: `out` of the config is a local folder, the same run on every machine.

    A config whose `out` is a local folder is given back as it is. The first process gets what uploads its checkpoints,
    the others None. At the end the upload is finished. All processes call it together.

    Raises InputError where the URL or the stage cannot be used, or another training writes there; UnavailableError
    where the store does not answer, at the end with the checkpoint kept in the stage.
    """
    if not isinstance(config.out, Url):
        yield config, None
        return
    url = Url(config.out.rstrip("/"))
    stage = config.stage or default_stage(url)
    local = replace(config, out=StagedFolder.of(stage / "run", url))
    Store(url)  # raises on all processes alike
    if context.is_main:
        print(f"{url}: staged in {local.out}", flush=True)
    with _held(config, context, url, stage, stop) as bucket:
        error: BaseException | None = None
        try:
            yield local, bucket and bucket.uploader
        except BaseException as raised:
            error = raised
            raise
        finally:
            if bucket is not None:
                with stop.deferred():
                    _finish(bucket, error, stop)


@contextmanager
def _held(
    config: TrainConfig, context: DistributedContext, url: Url, stage: Path, stop: StopSignal
) -> Iterator[Bucket | None]:
    """Hold URL and stage on the first process, and bring the same run to all machines."""
    bucket, failure, wanted, closing = None, None, None, None
    try:
        if context.is_main:
            closing = _opened(config, url, stage)
            with stop.immediate():
                bucket = closing.__enter__()
            wanted = bucket.uploader.index
    except (RunError, OSError, Interrupted) as error:
        failure, closing = as_run_error(error), None
        if failure is None:
            raise
    try:
        token = uuid.uuid4().hex if context.is_main and failure is None else None
        if token is not None:
            (stage / f".{token}").touch()
        (wanted, token, failure), *_ = context.gather_objects([(wanted, token, failure)])
        _raise_on_all(failure)
        problem = _copy_to_this_machine(config, context, url, stage, wanted, token, stop)
        _raise_on_all(next(filter(None, context.gather_objects([problem])), None))
        if context.is_main:
            (stage / f".{token}").unlink(missing_ok=True)
        yield bucket
    except BaseException as error:
        if closing is not None:
            closing.__exit__(type(error), error, error.__traceback__)
            closing = None
        raise
    finally:
        if closing is not None:
            closing.__exit__(None, None, None)


def _raise_on_all(failure: RunError | None) -> None:
    if failure is not None:
        failure.is_shared = True
        raise failure


@contextmanager
def _opened(config: TrainConfig, url: Url, folder: Path) -> Iterator[Bucket]:
    """Lock the stage, take the lease, and make stage and URL agree on the newest complete checkpoint."""
    store, stage = Store(url), Stage(folder, url)
    with stage.held():
        _check_place(store, config)
        lease = Lease(Store(url), stage.holder, warn)
        lease.take()
        try:
            found = store.read_tagged(INDEX, MAX_JSON_BYTES)
            index = None if found is None else parse_index(found[0], f"{url}/{INDEX}")
            if config.resume == "never":
                stage.belong_to(None)
            elif index is not None:
                stage.belong_to(index.run)
            stage.check_not_lost(index)
            index = index or CheckpointIndex(stage.run_id)
            if index.last:
                stage.note_committed()
            uploader = Uploader(
                store, stage.run, stage.links, index, found and found[1], config.keep_last, lease, stage.note_committed
            )
            remove_tree(stage.links)
            remove_leftovers(store, index)
            _make_equal(url, stage.run, store, uploader)
            store.patience = UPLOAD_PATIENCE
            yield Bucket(url, stage.run, uploader)
        finally:
            lease.release()


def _check_place(store: Store, config: TrainConfig) -> None:
    """Raises InputError where the URL holds other things than a run, or `--resume never` asks for an empty place."""
    names = set(store.entries()) - {LEASE}
    if names and (config.resume == "never" or INDEX not in names):
        # Some stores keep the folders of objects that were removed.
        names &= {name.partition("/")[0] for name in store.names("")}
    if config.resume == "never" and names:
        raise InputError(f"--resume never: {store} is not empty; give another --out, or omit the flag to resume")
    if INDEX not in names and names - OWN_NAMES:
        other = one_line(sorted(names - OWN_NAMES)[0], 60)
        raise InputError(f"--out {store} is not empty and holds no run (it has {other}); give another URL")


def _make_equal(url: Url, run: Path, store: Store, uploader: Uploader) -> None:
    """The newest complete checkpoint wins, wherever it is."""
    here, index = newest_here(run), uploader.index
    there = index.last[0] if index.last else None
    if here is not None and (there is None or here.step > there.step):
        has = f"has step {there.step}" if there else "has no checkpoint"
        warn(f"{url}: {has}, and this machine step {here.step}, whose upload was cut; uploading it, and resuming there")
        best = newest_here(run, BEST)
        if best is not None:
            uploader.checkpoint_complete(BEST, best.step, best.folder)
        uploader.checkpoint_complete(LAST, here.step, here.folder)
        uploader.wait()
    elif there is not None and (here is None or here.identity != there.manifest):
        old = f"this machine has step {here.step}" if here else "this machine has none"
        print(f"{url}: fetching the checkpoint of step {there.step} ({old})", flush=True)
        bring_here(store, index, run, warn)
    elif there is not None:
        bring_here(store, index, run, warn, only_best=True)


def _copy_to_this_machine(
    config: TrainConfig,
    context: DistributedContext,
    url: Url,
    stage: Path,
    wanted: CheckpointIndex | None,
    token: str | None,
    stop: StopSignal,
) -> RunError | None:
    """On the first process of each further machine: fetch what the first machine has. Returns what is wrong."""
    try:
        if (stage / f".{token}").exists():
            return None  # the first process's machine, or one that shares its disk
        if context.accelerator.is_fsdp2:
            return InputError(
                f"--out {url}: with FSDP2 each process writes a part of a checkpoint; give --stage a folder that all "
                "machines share"
            )
        if os.environ.get("LOCAL_RANK", "0") == "0" and wanted is not None:
            here = Stage(stage, url)
            here.belong_to(wanted.run if wanted.last else None)
            if wanted.last:
                here.note_committed()
                newest = newest_here(here.run)
                if newest is None or newest.identity != wanted.last[0].manifest:
                    with stop.immediate():
                        bring_here(Store(url), wanted, here.run, warn)
    except (RunError, OSError, Interrupted) as error:
        problem = as_run_error(error)
        if problem is None:
            raise
        return problem
    return None


def _finish(bucket: Bucket, error: BaseException | None, stop: StopSignal) -> None:
    """Finish the upload. Raises UnavailableError where it could not be, and the run itself has not failed."""
    ends_early = None if error is None else time.monotonic() + SECONDS_AFTER_STOP
    stopped: list[float] = []

    def until() -> float | None:
        if stop.received and not stopped:
            stopped.append(stop.received_at + SECONDS_AFTER_STOP)
        return min((each for each in (ends_early, *stopped) if each is not None), default=None)

    try:
        bucket.uploader.finish(until)
    except RunError as failure:
        ending = _with_places(bucket, failure, error)
        if ending is None:
            warn(str(_with_places(bucket, failure, None)))
        else:
            mark_not_uploaded(bucket.run, ending)
            raise ending from error


def _with_places(bucket: Bucket, failure: RunError, error: BaseException | None) -> RunError | None:
    """What ends the run, with where its checkpoints are; None where `error` has nothing to do with the upload."""
    step = bucket.uploader.newest_step
    places = (
        f"{bucket.url} has {'no checkpoint' if step is None else f'step {step}'}, and {bucket.run} on this machine the "
        "newest: run the same command there to upload it and resume"
    )
    if error is None:
        return type(failure)(f"{one_line(failure, 250)}; {places}")
    if isinstance(error, StopRequested):
        return type(failure)(f"{error}; {one_line(failure, 180)}; {places}")
    if isinstance(error, RunError) and str(failure) in str(error):
        ending = type(error)(f"{one_line(error, 250)}; {places}")
        ending.is_shared = error.is_shared
        return ending
    return None
