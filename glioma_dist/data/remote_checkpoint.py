"""Checkpoints at URLs: which a run has there, and how one is fetched to this machine.

A run at a URL has `checkpoints.json`, which lists its complete checkpoints, the newest first: it is written after all
files of a checkpoint, so whatever it lists is complete. The files are in `checkpoints/NAME/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from glioma_dist.config.paths import Url
from glioma_dist.data.cache_folder import NEW, cache_folder, drop_oldest
from glioma_dist.data.shards.bodies import NoRangesError
from glioma_dist.data.shards.file_locks import HeldError, held
from glioma_dist.data.shards.storage import Patience, RemoteFolder
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import MAX_JSON_BYTES, cannot_write, parse_json, read_bytes, remove_tree, rename_in_order

INDEX, FOLDER = "checkpoints.json", "checkpoints"
MANIFEST = "manifest.json"
FORMAT_VERSION = 1
PIECE_BYTES = 2**25
"""Of a file, asked for at a time: each has its own tries."""
SECONDS_TO_FETCH = 300.0
"""How long a process waits for another of this machine that fetches the same checkpoint."""
NAME = re.compile(r"(?:last|best)-\d{6,12}(?:-\d{1,6})?")
PART = re.compile(r"metrics/\d{6,12}\.jsonl")
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
MAX_STEP = 10**12


@dataclass(frozen=True)
class Entry:
    """A complete checkpoint of a run."""

    name: str
    """Its folder below `checkpoints/`: last-000040, best-000040."""
    step: int
    manifest: str
    """SHA-256 of its manifest.json, and so of all of it."""


@dataclass(frozen=True)
class Part:
    """Some rows of metrics.jsonl, as an object of their own."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointIndex:
    """What `checkpoints.json` says."""

    run: str
    """Made when the run began; tells it from another run at the same URL."""
    last: tuple[Entry, ...] = ()
    best: tuple[Entry, ...] = ()
    metrics: tuple[Part, ...] = field(default=())
    """Parts of metrics.jsonl, in their order."""
    writes: int = 0
    """How often it was written."""

    def to_bytes(self) -> bytes:
        """As the object holds it."""
        return (json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n").encode()

    def of(self, kind: str) -> tuple[Entry, ...]:
        """The entries of "last" or "best", the newest first."""
        return self.best if kind == "best" else self.last

    def with_entry(self, kind: str, entry: Entry, keep: int) -> CheckpointIndex:
        """With one more, and at most `keep` of its kind."""
        entries = (entry, *(each for each in self.of(kind) if each.name != entry.name))[:keep]
        return replace(self, **{kind: entries})

    def names(self) -> set[str]:
        """Folders below `checkpoints/`."""
        return {each.name for each in (*self.last, *self.best)}


def parse_index(data: bytes, where: str) -> CheckpointIndex:
    """Raises InputError for what no run writes."""
    content = parse_json(data, where)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{where}: format {one_line(version, 20)}, this version reads {FORMAT_VERSION}")
    try:
        index = CheckpointIndex(
            content["run"],
            tuple(Entry(**each) for each in content["last"]),
            tuple(Entry(**each) for each in content["best"]),
            tuple(Part(**each) for each in content["metrics"]),
            content["writes"],
        )
        if not all(map(_is_entry, (*index.last, *index.best))) or not all(map(_is_part, index.metrics)):
            raise ValueError("an entry")
        if not isinstance(index.run, str) or type(index.writes) is not int:
            raise ValueError("run or writes")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: is no list of checkpoints ({one_line(error, 100)})") from None
    return index


def read_index(folder: RemoteFolder) -> CheckpointIndex | None:
    """The list of a run's checkpoints; None where there is none."""
    data = folder.read_optional(INDEX, MAX_JSON_BYTES)
    return None if data is None else parse_index(data, folder.where(INDEX))


def read_manifest(
    folder: RemoteFolder, name: str, digest: str | None = None
) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """manifest.json of the checkpoint in the folder `name`: its bytes, and each file with `bytes` and `sha256`.

    digest: what its SHA-256 has to be. Raises InputError where it is missing, another, or no manifest.
    """
    path = f"{name}/{MANIFEST}".lstrip("/")
    accept = None if digest is None else lambda data: hashlib.sha256(data).hexdigest() == digest
    data = folder.read_all(path, MAX_JSON_BYTES, accept)
    content = parse_json(data, folder.where(path))
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not all(_is_file(*each) for each in files.items()):
        raise InputError(f"{folder.where(path)}: is no manifest of a checkpoint")
    return data, files


def download(folder: RemoteFolder, name: str, into: Path, digest: str | None = None, without: str = "\0") -> None:
    """Fetch a checkpoint, every byte checked, into the new folder `into`. without: files whose names begin so stay.

    Raises InputError where a file is missing, damaged or cannot be written, UnavailableError where it may be had
    another time.
    """
    manifest, files = read_manifest(folder, name, digest)
    try:
        into.mkdir(parents=True)
        for file, entry in files.items():
            if not file.startswith(without):
                _download_file(folder, f"{name}/{file}".lstrip("/"), into / file, entry)
        _write(into / MANIFEST, manifest)
    except OSError as error:
        raise cannot_write(error.filename or into, error) from None


def _download_file(folder: RemoteFolder, name: str, path: Path, entry: dict[str, Any]) -> None:
    size, digest = entry["bytes"], hashlib.sha256()
    with open(path, "wb") as file:

        def take(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        def take_all() -> None:
            nonlocal digest
            digest = hashlib.sha256()
            file.seek(0)
            file.truncate()
            folder.copy_whole(name, size, take)

        try:
            for start in range(0, size, PIECE_BYTES):
                take(folder.request_range(name, start, min(start + PIECE_BYTES, size)))
        except NoRangesError:
            folder.retry(folder.where(name), take_all)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != entry["sha256"]:
        raise InputError(f"{folder.where(name)}: is damaged (its bytes do not match the SHA-256 in its manifest)")


def fetch_checkpoint(place: Path | Url | str, patience: Patience | None = None) -> Path:
    """The local folder of a checkpoint: `place` itself, or what was fetched from it where it is a URL.

    A URL is that of a checkpoint folder, or of `best` or `last` of a run that trained with this URL as `--out`. What
    resuming needs is not fetched. A checkpoint that was fetched before is not fetched again.

    Raises InputError where there is none, UnavailableError where the store does not answer.
    """
    if not isinstance(place, Url):
        return Path(place)
    folder, name, digest = _find(place, patience)
    data, files = read_manifest(folder, name, digest)
    digest = hashlib.sha256(data).hexdigest()
    kept = cache_folder() / "checkpoints" / digest[:32]
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with held(kept.parent / f".{kept.name}.lock", SECONDS_TO_FETCH, "the process that fetches it"):
            if not _is_intact(kept, files):
                _fetch(folder, name, kept, digest)
    except HeldError:
        _fetch(folder, name, kept, digest)
    except OSError as error:
        raise cannot_write(kept, error) from None
    with suppress(OSError):
        os.utime(kept)
    drop_oldest(kept.parent)
    return kept


def find_remote(url: Url, patience: Patience | None = None) -> None:
    """Raises what `fetch_checkpoint` raises where there is no checkpoint at a URL; its weights are not fetched."""
    folder, name, digest = _find(url, patience)
    read_manifest(folder, name, digest)


def _find(url: Url, patience: Patience | None) -> tuple[RemoteFolder, str, str | None]:
    """The folder, the name in it and, of a run's checkpoint, the SHA-256 of the manifest that a URL means."""
    if url.name in ("best", "last") and _lies_in_a_folder(url):
        run = RemoteFolder(url.parent, patience)
        index = read_index(run)
        if index is not None:
            entries = index.of(url.name) or (index.last if url.name == "best" else ())
            if not entries:
                raise InputError(f"{url}: the run has no complete checkpoint yet")
            return run, f"{FOLDER}/{entries[0].name}", entries[0].manifest
    folder = RemoteFolder(url, patience)
    if folder.read_optional(MANIFEST, MAX_JSON_BYTES) is None:
        raise InputError(f"{url}: no checkpoint there (no {MANIFEST}); give a URL as s3://bucket/run/best")
    return folder, "", None


def _lies_in_a_folder(url: Url) -> bool:
    """Whether a URL is not that of a bucket, a host or a repository of the hub, which have any name."""
    scheme, _, place = url.rstrip("/").partition("://")
    depth = (3 if place.startswith(("datasets/", "spaces/", "buckets/")) else 2) if scheme == "hf" else 1
    return place.count("/") >= depth


def _fetch(folder: RemoteFolder, name: str, kept: Path, digest: str) -> None:
    new = Path(tempfile.mkdtemp(prefix=NEW, dir=kept.parent))
    try:
        download(folder, name, new / "it", digest, without="optimizer")
        if kept.exists():  # a damaged one, or another process was quicker
            remove_tree(kept)
        with suppress(OSError):
            rename_in_order((new / "it", kept))
        if not kept.is_dir():
            raise InputError(f"{kept}: cannot be written; check the folder and the disk")
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _is_intact(kept: Path, files: dict[str, dict[str, Any]]) -> bool:
    try:
        return (kept / MANIFEST).is_file() and all(
            hashlib.sha256(read_bytes(kept / name, entry["bytes"])).hexdigest() == entry["sha256"]
            for name, entry in files.items()
            if not name.startswith("optimizer")
        )
    except InputError:
        return False


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _is_entry(entry: Entry) -> bool:
    is_step = type(entry.step) is int and 0 <= entry.step <= MAX_STEP
    return is_step and bool(NAME.fullmatch(entry.name)) and _is_digest(entry.manifest)


def _is_part(part: Part) -> bool:
    return bool(PART.fullmatch(part.name)) and _is_size(part.bytes) and _is_digest(part.sha256)


def _is_file(name: str, entry: Any) -> bool:
    is_plain = bool(FILE.fullmatch(name)) and name != MANIFEST and isinstance(entry, dict)
    return is_plain and _is_size(entry.get("bytes")) and _is_digest(entry.get("sha256"))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**50


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
