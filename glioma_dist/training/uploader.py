"""Uploads a run's checkpoints beside the training, on a thread of the first process."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from glioma_dist.data.remote_checkpoint import FOLDER, INDEX, MANIFEST, CheckpointIndex, Entry, Part
from glioma_dist.data.shards.store import ChangedError, Store
from glioma_dist.errors import InputError, RunError, UnavailableError
from glioma_dist.files import cannot_read, cannot_write, link_files, remove_tree
from glioma_dist.training.lease import Lease

METRICS = "metrics.jsonl"
MAX_SMALL_BYTES = 2**26
MAX_PARTS = 64
"""Of metrics.jsonl; then one object with all rows takes their place."""
RUNNING, FULL, OVER = "running", "full", "over"


@dataclass(frozen=True)
class Job:
    """A checkpoint to upload."""

    kind: str
    """last or best"""
    step: int
    folder: Path
    """Links to its files, which stay when the run removes the checkpoint."""
    small: dict[str, bytes]
    """Files of the run's folder, as they were when the checkpoint was complete."""
    metrics_bytes: int
    """Of metrics.jsonl, at that moment."""


class Uploader:
    """Uploads the checkpoints of the run in the local folder `run` to `store`, in their order.

    If they come faster than they can be uploaded, only the newest of each kind is. links: a folder on the same disk.
    index: what the store's list of checkpoints says, with its tag. keep: how many `last` stay. committed: called after
    each checkpoint that is complete at the URL.
    """

    def __init__(
        self,
        store: Store,
        run: Path,
        links: Path,
        index: CheckpointIndex,
        tag: str | None,
        keep: int,
        lease: Lease,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._run, self._links, self._keep, self._lease = store, run, links, keep, lease
        self._committed = committed
        self.index, self._tag = index, tag
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._busy, self._ended, self._number = False, False, 0
        self._failure: RunError | None = None
        self._sent: dict[str, str] = {}
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> RunError | None:
        """What has to end the run: an upload failed, or another training has taken over."""
        return self._failure or self._lease.lost

    @property
    def newest_step(self) -> int | None:
        """Of the newest checkpoint that is complete at the URL."""
        return self.index.last[0].step if self.index.last else None

    def checkpoint_complete(self, kind: str, step: int, source: Path | None = None) -> None:
        """Upload the checkpoint in `source`, by default that which the run has as `kind`. Returns at once."""
        self._number += 1
        folder = self._links / f"{kind}-{self._number:06d}"
        metrics = self._run / METRICS
        try:
            link_files(source or self._run / kind, folder)
            num_bytes = metrics.stat().st_size if metrics.exists() else 0
        except OSError as error:  # the others do not wait for this process: it tells them before the next step
            self._failure = self._failure or cannot_write(error.filename or folder, error)
            return
        job = Job(kind, step, folder, dict(small_files(self._run)), num_bytes)
        with self._changed:
            late = self._jobs.pop(kind, None)
            self._jobs[kind] = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        if late is not None:
            remove_tree(late.folder)

    def finish(self, until: Callable[[], float | None]) -> None:
        """Wait until all is uploaded, then upload the final state of the run's other files.

        until: time.monotonic() at which to give up, None for as long as the store's patience lasts; asked again and
        again. Raises what kept a checkpoint from being uploaded.
        """
        self.wait(until)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._lease.check()
        self._store.until = until()
        self._send(dict(small_files(self._run)))
        metrics = self._run / METRICS
        if metrics.exists():
            self._store.put_file(METRICS, metrics)

    def wait(self, until: Callable[[], float | None] = lambda: None) -> None:
        """Wait until all is uploaded. See `finish`."""
        with self._changed:
            while (self._jobs or self._busy) and self._failure is None:
                self._store.until = until()
                if self._store.until is not None and time.monotonic() > self._store.until:
                    self._failure = UnavailableError(f"{self._store}: the upload did not finish in time")
                self._changed.wait(0.1)
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                job = self._jobs.pop(next(iter(self._jobs)))
                self._busy = True
            try:
                self.upload(job)
            except RunError as error:
                self._failure = self._failure or error
            except OSError as error:
                self._failure = self._failure or cannot_read(error.filename or job.folder, error)
            except BaseException as error:
                self._failure = self._failure or RunError(f"the upload to {self._store} failed: {error!r}")
                raise
            finally:
                remove_tree(job.folder)
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
            if self._failure is not None:
                return

    def upload(self, job: Job) -> None:
        """Upload one checkpoint: its files, its manifest, the new rows of metrics, and last the list that names it."""
        self._lease.check()
        digest = hashlib.sha256((job.folder / MANIFEST).read_bytes()).hexdigest()
        old = self.index
        name = self._name(job, digest)
        if name not in old.names():
            files = sorted(path.name for path in job.folder.iterdir() if path.name != MANIFEST)
            self._store.put_files({f"{FOLDER}/{name}/{file}": job.folder / file for file in (*files, MANIFEST)})
        metrics = self._metrics(job.metrics_bytes)
        new = replace(
            old.with_entry(job.kind, Entry(name, job.step, digest), self._keep if job.kind == "last" else 1),
            metrics=metrics,
            writes=old.writes + 1,
        )
        self._lease.check()
        try:
            self._tag = self._store.replace(INDEX, new.to_bytes(), self._tag)
        except ChangedError:
            raise InputError(
                f"--out {self._store}: another training has written there; nothing more is uploaded"
            ) from None
        self.index = new
        self._committed()
        self._send(job.small)
        self._remove_unlisted(old)

    def _name(self, job: Job, digest: str) -> str:
        """A name that no other checkpoint has."""
        same = next((each.name for each in self.index.of(job.kind) if each.manifest == digest), None)
        name, number = f"{job.kind}-{job.step:06d}", 1
        while same is None and name in self.index.names():
            number += 1
            name = f"{job.kind}-{job.step:06d}-{number}"
        return same or name

    def _metrics(self, num_bytes: int) -> tuple[Part, ...]:
        """Upload the rows that are new. Returns all parts; together they are the first `num_bytes` of metrics.jsonl."""
        path, parts = self._run / METRICS, self.index.metrics
        if not path.exists():
            return parts
        with path.open("rb") as file:
            data = file.read(num_bytes)
        at = 0
        for part in parts:
            if hashlib.sha256(data[at : at + part.bytes]).hexdigest() != part.sha256 or at + part.bytes > len(data):
                break
            at += part.bytes
        else:
            if at == len(data):
                return parts
            if len(parts) < MAX_PARTS:
                return (*parts, self._put_part(data[at:]))
        return (self._put_part(data),)

    def _put_part(self, data: bytes) -> Part:
        last = max((int(part.name[len("metrics/") : -len(".jsonl")]) for part in self.index.metrics), default=0)
        name = f"metrics/{last + 1:06d}.jsonl"
        self._store.put(name, data)
        return Part(name, len(data), hashlib.sha256(data).hexdigest())

    def _send(self, small: dict[str, bytes]) -> None:
        """Upload those files that have changed."""
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in small.items()}
        self._store.put_files({name: data for name, data in small.items() if self._sent.get(name) != digests[name]})
        self._sent.update(digests)

    def _remove_unlisted(self, old: CheckpointIndex) -> None:
        """Remove what the list before named and this one does not; the manifests first."""
        gone = old.names() - self.index.names()
        parts = {part.name for part in old.metrics} - {part.name for part in self.index.metrics}
        names = [each for name in sorted(gone) for each in self._store.names(f"{FOLDER}/{name}")]
        self._store.remove(sorted(names, key=lambda each: not each.endswith(MANIFEST)) + sorted(parts))


def small_files(run: Path) -> Iterator[tuple[str, bytes]]:
    """The files beside the checkpoints, by their names, without metrics.jsonl and what is hidden."""
    for path in sorted(run.iterdir()) if run.is_dir() else ():
        if path.name.startswith(".") or path.name in (METRICS, INDEX) or not path.is_file():
            continue
        with suppress(OSError):
            if path.stat().st_size <= MAX_SMALL_BYTES:
                yield path.name, path.read_bytes()
