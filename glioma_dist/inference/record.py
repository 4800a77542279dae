"""predict.json: which results of a folder are complete, and what each was made from, so that a second run skips it.

It is rewritten every few seconds while a prediction runs. Whatever was finished since the last time is only made once
more. Of several processes of a launch, each but the first has a file of its own, which the first one takes in at the
end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import glioma_dist
from glioma_dist.config import PredictConfig
from glioma_dist.config.paths import Url
from glioma_dist.data.shards.store import Store
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import PARTIAL, list_folder, parse_json, read_bytes, remove_tree, write_atomically
from glioma_dist.inference.images import RECORDS
from glioma_dist.inference.results import PredictedImage
from glioma_dist.model.checkpoint import Checkpoint

RECORD = "predict.json"
FORMAT_VERSION = 1
MAX_RECORD_BYTES = 2**30
SECONDS_BETWEEN_WRITES, AT_A_URL = 5.0, 30.0
WRITING_SHARE = 0.05
"""Of the time, at most, for writing a large record."""
SECONDS_OF_A_LEFTOVER = 3600.0
"""Age of a temporary file or folder that no process can be writing any more."""
OF_NO_RESULT = ("checkpoint", "images", "out", "scale", "memory", "write", "redo", "channel", "time", "page")
"""Fields of PredictConfig that change no mask beyond what `way` says, or are part of what a picture is."""


@dataclass
class Record:
    """What is known of the results in a folder. images: by the name of the results, what each was made from, with which
    settings, and its row; settings: by their digest; checkpoints: by the digest of their manifests."""

    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, other: Record) -> None:
        """Add what another one knows; its entries replace those of this one."""
        self.images |= other.images
        self.settings |= other.settings
        self.checkpoints |= other.checkpoints

    def to_text(self) -> str:
        """Return the record as JSON."""
        head = {"format_version": FORMAT_VERSION, "program": f"glioma-dist {glioma_dist.__version__}"}
        return json.dumps(head | {"checkpoints": self.checkpoints, "settings": self.settings, "images": self.images})

    @classmethod
    def from_bytes(cls, data: bytes, where: Path | Url) -> Record:
        """Read a record. Raises InputError for a file that is not a record, for example one of the user."""
        content = parse_json(data, where)
        parts = [content.get(each.name) for each in fields(cls)] if isinstance(content, dict) else [None]
        if not all(isinstance(part, dict) and all(isinstance(each, dict) for each in part.values()) for part in parts):
            raise InputError(f"{where}: is no record of a prediction; give another folder to --out, or remove the file")
        if content.get("format_version") != FORMAT_VERSION:
            return cls()
        found = cls(*parts)
        found.images = {name: entry for name, entry in found.images.items() if _is_entry(entry)}
        return found


def _is_entry(entry: dict[str, Any]) -> bool:
    kinds = {"source": list, "settings": str, "kinds": list, "results": dict, "row": dict}
    try:
        names = result_names(entry.get("row"))
    except RecursionError:
        return False
    has_results = bool(names) or entry.get("kinds") == []
    return has_results and all(isinstance(entry.get(name), kind) for name, kind in kinds.items())


def settings_of(config: PredictConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the masks depend on besides the pictures: the identity of the checkpoint, and the settings."""
    values = {each.name: getattr(config, each.name) for each in fields(config) if each.name not in OF_NO_RESULT}
    plain = {name: value if isinstance(value, int | float | None) else str(value) for name, value in values.items()}
    return {"checkpoint": checkpoint.manifest.identity, **plain}


def describe_checkpoint(config: PredictConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """Describe a checkpoint for readers of the record: path, step, encoder, lineage."""
    model = checkpoint.config.model
    told = {"path": str(config.checkpoint), "step": checkpoint.step, "encoder": model.encoder}
    return told | {"lineage": checkpoint.lineage}


def digest_of(settings: Mapping[str, Any]) -> str:
    """Return a short name of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def as_json(value: Any, out: Path | Url) -> Any:
    """Return a value of a `PredictedImage` as JSON; results are named within their folder, which may be moved."""
    if isinstance(value, Path | Url):
        if str(value).startswith(f"{str(out).rstrip('/')}/"):
            return {"result": str(value)[len(str(out).rstrip("/")) + 1 :]}
        return {"url" if isinstance(value, Url) else "path": str(value)}
    if isinstance(value, tuple | list):
        return [as_json(each, out) for each in value]
    if isinstance(value, dict):
        return {"dict": {key: as_json(each, out) for key, each in value.items()}}
    return value


def from_json(value: Any, out: Path | Url) -> Any:
    """Return the value that `as_json` was given; lists become tuples."""
    if isinstance(value, list):
        return tuple(from_json(each, out) for each in value)
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {key: from_json(each, out) for key, each in inner.items()}
    return out / inner if kind == "result" else {"url": Url, "path": Path}[kind](inner)


def result_names(value: Any) -> list[str]:
    """Return the names of all results in what `as_json` returned."""
    if isinstance(value, list):
        return [name for each in value for name in result_names(each)]
    if not isinstance(value, dict):
        return []
    if set(value) == {"result"} and isinstance(value["result"], str):
        return [value["result"]]
    return [name for each in value.values() for name in result_names(each)]


def make_entry(
    predicted: PredictedImage, source: tuple[Any, ...], settings: str, kinds: tuple[str, ...], out: Path | Url
) -> dict[str, Any]:
    """Make the record's entry of a picture whose results are written."""
    row = {each.name: as_json(getattr(predicted, each.name), out) for each in fields(predicted)}
    marks = {name: mark_of(out / name) for name in result_names(row)}
    return {"source": list(source), "settings": settings, "kinds": list(kinds), "results": marks, "row": row}


def mark_of(path: Path | Url) -> list[int] | None:
    """Return size (bytes) and time (ns) of a result file; None at a URL, for a folder, and if there is no such file."""
    if isinstance(path, Url):
        return None
    with suppress(OSError):
        found = path.stat()
        return None if path.is_dir() else [found.st_size, found.st_mtime_ns]
    return None


def read_row(entry: dict[str, Any], out: Path | Url) -> PredictedImage | None:
    """Return the results that an entry describes; None where it is of another version, or damaged."""
    try:
        return PredictedImage(**{name: from_json(value, out) for name, value in entry["row"].items()})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


class Place:
    """The folder or URL of the results, as the record sees it."""

    def __init__(self, out: Path | Url) -> None:
        self.out = out
        self._store = Store(out) if isinstance(out, Url) else None

    def read(self) -> Record:
        """Read all that is recorded. Raises InputError if predict.json is not a record, or cannot be read."""
        found = Record()
        for name in self.process_files():
            with suppress(InputError):  # of a launch that was killed: it only costs time
                found.take(self._read(name))
        record = self._read(RECORD)
        record.take(found)
        return record

    def read_main(self) -> Record:
        """What is recorded but in files of single processes. Raises InputError as `read`."""
        return self._read(RECORD)

    def write(self, record: Record, name: str = RECORD) -> None:
        """Write the record. Raises InputError if it cannot be written."""
        if self._store is not None:
            self._store.put(name, record.to_text().encode())
        else:
            write_atomically(self.out / name, record.to_text(), by_several=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within it, no other run into the same folder reads and writes the record: none loses what another has added.
        A URL has no locks, and some file systems have none for folders."""
        descriptor = -1
        if self._store is None:
            with suppress(OSError):
                descriptor = os.open(self.out, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def process_files(self) -> list[str]:
        """Return the names of the files of single processes."""
        return sorted(name for name in self.names() if RECORDS.fullmatch(name) and name != RECORD)

    def names(self) -> list[str]:
        """Return the names of all files and folders there."""
        if self._store is not None:
            return self._store.entries()
        return list_folder("--out", self.out)

    def remove(self, names: list[str]) -> None:
        """Remove files of single processes."""
        if self._store is not None:
            self._store.remove(names)
        for name in names if self._store is None else ():
            remove_tree(self.out / name)

    def remove_leftovers(self) -> None:
        """Remove temporary files and folders of runs that were killed long ago."""
        for name in self.names() if self._store is None else ():
            with suppress(OSError):
                path = self.out / name
                changed = (each.lstat().st_mtime for each in (path, *path.rglob("*")))
                if PARTIAL.fullmatch(name) and time.time() - max(changed) > SECONDS_OF_A_LEFTOVER:
                    remove_tree(path)

    def _read(self, name: str) -> Record:
        path = self.out / name
        if self._store is not None:
            data = self._store.read_optional(name, MAX_RECORD_BYTES)
        else:
            data = read_bytes(path, MAX_RECORD_BYTES) if os.path.exists(path) else None
        return Record() if data is None else Record.from_bytes(data, path)


class RecordWriter:
    """Keeps the record while a process of a launch works. started_from: what the first one knew before."""

    def __init__(self, place: Place, started_from: Record, rank: int) -> None:
        self.record, self._place = started_from, place
        self.name = RECORD if rank == 0 else f"predict-{rank:05d}.json"
        self._pause = AT_A_URL if isinstance(place.out, Url) else SECONDS_BETWEEN_WRITES
        self._next, self._is_new = time.monotonic() + self._pause, False
        self.added: dict[str, dict[str, Any]] = {}

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Record that a picture's results are written. Raises InputError if the record cannot be written."""
        self.record.images[name] = entry
        self.added[name] = entry
        self._is_new = True
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Write what is new. Raises InputError."""
        if not self._is_new:
            return
        began = time.monotonic()
        if self.name == RECORD:
            with self._place.locked():
                self._place.write(self.with_others(), self.name)
        else:
            self._place.write(self.record, self.name)
        self._is_new = False
        self._next = time.monotonic() + max(self._pause, (time.monotonic() - began) / WRITING_SHARE)

    def with_others(self) -> Record:
        """The record, with what another run has added to the folder meanwhile; of an image that both have made, this
        one's."""
        complete = Record()
        complete.take(self.record)
        with suppress(InputError):
            complete.take(self._place.read_main())
        complete.take(Record(self.added, self.record.settings, self.record.checkpoints))
        return complete


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say in words which settings have changed."""
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(
        "another checkpoint"
        if name == "checkpoint"
        else f"--{name.replace('_', '-')} was {one_line(old.get(name), 40)}, is {one_line(new.get(name), 40)}"
        for name in changed
    )
