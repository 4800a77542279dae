"""The copy of a run on this machine: what it has, and how it is made from what is at the URL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from glioma_dist.data.remote_checkpoint import FOLDER, MANIFEST, CheckpointIndex, Entry, Part, download
from glioma_dist.data.shards.storage import RemoteFolder
from glioma_dist.data.shards.store import Store
from glioma_dist.errors import InputError, UnavailableError, one_line
from glioma_dist.files import cannot_write, remove_tree, rename_in_order, write_atomically
from glioma_dist.model.checkpoint import Checkpoint, kept_folders
from glioma_dist.training.metrics_file import MAX_METRICS_BYTES
from glioma_dist.training.resume import BEST, CONFIG, HASHES, LAST, METRICS, RESUMABLE
from glioma_dist.training.run_record import RUN
from glioma_dist.training.status import STATUS
from glioma_dist.training.trackers.names import IDS

MAX_SMALL_BYTES = 2**26


@dataclass(frozen=True)
class Here:
    """The newest undamaged checkpoint of a run's folder."""

    folder: Path
    step: int
    identity: str
    """SHA-256 of its manifest."""


def newest_here(run: Path, kind: str = LAST) -> Here | None:
    """The newest undamaged checkpoint of a kind in a local run folder; every byte is read."""
    for folder in kept_folders(run / kind):
        try:
            checkpoint = Checkpoint.read(folder)
            checkpoint.check()
        except InputError:
            continue
        if checkpoint.step is not None:
            return Here(folder, checkpoint.step, checkpoint.manifest.identity)
    return None


def bring_here(
    store: RemoteFolder,
    index: CheckpointIndex,
    run: Path,
    say: Callable[[str], None],
    only_best: bool = False,
) -> None:
    """Replace what a local run folder holds by the newest undamaged checkpoint at the URL, with its metrics.

    only_best: `last` is there already, only `best` may be missing or old. Raises InputError where nothing at the URL
    is undamaged, UnavailableError where the store does not answer.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(run, error) from None
    best = newest_here(run, BEST)
    if index.best and (best is None or best.identity != index.best[0].manifest):
        _fetch(store, index.best, run, BEST, say)
    elif not index.best:
        remove_tree(run / BEST)
    if only_best:
        return
    _fetch(store, index.last, run, LAST, say)
    write_atomically(run / METRICS, b"".join(_rows(store, part, say) for part in index.metrics))
    for name in (CONFIG, RUN, STATUS, HASHES, IDS):
        data = store.read_optional(name, MAX_SMALL_BYTES)
        if data is not None:
            write_atomically(run / name, data)
    write_atomically(run / RESUMABLE, b"")


def _rows(store: RemoteFolder, part: Part, say: Callable[[str], None]) -> bytes:
    """The rows of metrics.jsonl in a part, as the run wrote them; none where they are lost, for no result of the
    training depends on them."""
    try:
        if part.bytes > MAX_METRICS_BYTES:
            raise InputError(f"{store}/{part.name}: has more bytes than any run writes")
        data = store.read_all(part.name, part.bytes)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise InputError(f"{store}/{part.name}: is not what the run wrote, its SHA-256 is another")
    except UnavailableError:
        raise
    except InputError as error:
        say(f"{one_line(error, 300)}; its rows of {METRICS} are lost")
        return b""
    return data


def _fetch(store: RemoteFolder, entries: tuple[Entry, ...], run: Path, kind: str, say: Callable[[str], None]) -> None:
    """Fetch the first of the entries that is undamaged, and put it in the place of all that the folder has."""
    new, faults = run / f"{kind}.new", []
    for entry in entries:
        remove_tree(new)
        try:
            download(store, f"{FOLDER}/{entry.name}", new, entry.manifest)
        except UnavailableError:
            raise
        except InputError as error:
            faults.append(error)
            say(f"{one_line(error, 300)}; trying the checkpoint before it")
            continue
        for folder in kept_folders(run / kind):
            remove_tree(folder)
        try:
            rename_in_order((new, run / kind))
        except OSError as error:
            raise cannot_write(run / kind, error) from None
        return
    remove_tree(new)
    if kind == LAST:
        raise InputError(f"{store}: no checkpoint there is undamaged ({one_line(faults[0], 300)}); restore one")


def remove_leftovers(store: Store, index: CheckpointIndex) -> None:
    """Remove what an upload that was cut has left: objects that the list of checkpoints does not name."""
    listed = index.names()
    names = [name for name in store.names(FOLDER) if name.split("/")[1] not in listed]
    parts = {part.name for part in index.metrics}
    names += [name for name in store.names("metrics") if name not in parts]
    store.remove(sorted(names, key=lambda name: not name.endswith(MANIFEST)))
