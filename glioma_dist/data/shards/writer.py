"""Writes shards: tar files in WebDataset's convention with an index; see shards/README.md."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glioma_dist.data.images.grey_png import encode_in_bands
from glioma_dist.data.sample import (
    IGNORE,
    Sample,
    cells_of,
    check_same_size,
    encode_classes,
    encode_image,
    encode_instances,
)
from glioma_dist.data.shards.checks import fault_of_classes
from glioma_dist.data.shards.file_locks import is_at
from glioma_dist.data.shards.index import (
    FORMAT_VERSION,
    INDEX_NAME,
    KEY_PATTERN,
    PLAIN_VERSION,
    index_texts,
    members_name,
    write_json,
)
from glioma_dist.data.shards.tar_members import member_table
from glioma_dist.errors import InputError, UnavailableError
from glioma_dist.files import remove_tree, rename_in_order, sync
from glioma_dist.limits import MAX_INSTANCES

SAMPLES_PER_SHARD = 64


class ShardWriter:
    """Writes one split's samples; a context manager.

    Everything goes to `.<split>.partial` beside `folder`, which is renamed to `folder` at the very end. An
    exception removes it; a killed process leaves it behind, and the next writer clears it away. While a process writes
    there, others are refused. The same samples in the same order give the same bytes.

    classes: names of the masks' classes 1, 2, …; none where there is one class, or two or more. has_instances: whether
    each sample has `instances`. The format's version is 1 without both and without ignored pixels, and 2 otherwise.

    Raises InputError where `folder` exists and is no folder of shards: such a folder is never replaced; and for a
    dataset, split or licence that no reader would take. Raises UnavailableError while another process writes it.
    """

    def __init__(
        self,
        folder: str | Path,
        dataset: str,
        split: str,
        licence: str,
        citation: str | None = None,
        samples_per_shard: int = SAMPLES_PER_SHARD,
        classes: Sequence[str] = (),
        has_instances: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.samples_per_shard = samples_per_shard
        self._labels = {"classes": list(classes), "has_instances": has_instances, "has_ignore": False}
        fault = fault_of_classes(self._labels)
        if fault:
            raise InputError(f"{self.folder}: {fault}")
        self._texts = {"dataset": dataset, "split": split, "licence": licence}
        self._head: dict[str, object] = {"format_version": PLAIN_VERSION, **self._texts}
        if citation is not None:
            self._head["citation"] = citation
        self._partial = self.folder.parent / f".{self.folder.name}.partial"
        self._replaced = self.folder.parent / f".{self.folder.name}.replaced"
        self._shards: list[dict] = []
        self._keys: set[str] = set()
        self._file = self._tar = None
        self._num_in_shard = 0

    def __enter__(self) -> ShardWriter:
        if self.folder.is_symlink() or (self.folder.exists() and not (self.folder / INDEX_NAME).is_file()):
            raise InputError(f"{self.folder}: exists and holds no shards, so it is not replaced; choose another --out")
        self._head |= index_texts(self.folder, **self._texts)
        try:
            self._lock = _lock_folder(self._partial)
        except BlockingIOError:
            what = "another process writes shards there; wait until it has ended, or choose another --out"
            raise UnavailableError(f"{self.folder}: {what}") from None
        except OSError as error:
            raise InputError(f"{self._partial}: cannot be made ({error.strerror}); choose another --out") from None
        for leftover in (*self._partial.iterdir(), self._replaced):
            remove_tree(leftover)
        return self

    def __exit__(self, exception_type: object, *_: object) -> None:
        try:
            if exception_type is None:
                self._finish_shard()
                self._finish_folder()
        finally:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._tar.close()
                self._file.close()
            if is_at(self._lock, self._partial):  # else it has its final name, and may be another process's
                shutil.rmtree(self._partial, ignore_errors=True)
            os.close(self._lock)

    def write(self, sample: Sample) -> None:
        """Append a sample.

        Raises InputError for a key of wrong form or seen before, a mask of another size than its image, or labels that
        are not of the classes.
        """
        if not KEY_PATTERN.fullmatch(sample.key) or sample.key in self._keys:
            raise InputError(f"sample {sample.key!r}: the key is not letters, digits, _ and - only, or comes twice")
        check_same_size(sample, str(self.folder), "give a mask of the image's size")
        self._check_labels(sample)
        if self._tar is None:
            self._start_shard()
        self._keys.add(sample.key)
        members = {
            "__key__": sample.key,
            "png": encode_in_bands(sample.image) if sample.image.ndim == 2 else encode_image(sample.image),
            "mask.png": encode_classes(sample.mask),
            "json": json.dumps(sample.metadata, sort_keys=True, ensure_ascii=True).encode(),
        }
        if sample.instances is not None:
            members["instances.png"] = encode_instances(sample.instances)
        self._tar.write(members)
        self._num_in_shard += 1
        if self._num_in_shard == self.samples_per_shard:
            self._finish_shard()

    def _check_labels(self, sample: Sample) -> None:
        """Note whether pixels are ignored. Raises InputError for labels that a reader would refuse or misread."""

        def refuse(what: str) -> InputError:
            return InputError(f"{self.folder}: sample {sample.key}: {what}")

        most = int(sample.mask.max(initial=0))
        if most == IGNORE:
            self._labels["has_ignore"] = True
            most = int(sample.mask[sample.mask != IGNORE].max(initial=0))
        num_classes = max(1, len(self._labels["classes"]))
        if most > num_classes:
            raise refuse(f"its mask has the value {most}, and there {_are(num_classes)}; give the names of all classes")
        if (sample.instances is not None) != self._labels["has_instances"]:
            has = "instances" if sample.instances is not None else "no instances"
            raise refuse(f"has {has}; give instances for all samples and has_instances=True, or for none")
        if sample.instances is None:
            return
        if not 0 <= sample.instances.min(initial=0) <= sample.instances.max(initial=0) <= MAX_INSTANCES:
            raise refuse(f"its cells are not numbered from 1 to {MAX_INSTANCES}")
        if not np.array_equal(sample.instances > 0, cells_of(sample.mask)):
            raise refuse("its mask and its instances have cells at different pixels")

    def _start_shard(self) -> None:
        self._file = open(self._partial / f"{len(self._shards):05d}.tar", "wb")  # noqa: SIM115 (closed in _finish_shard)
        # Imported here, because webdataset imports PyTorch, and reading shards needs neither.
        from webdataset import TarWriter

        # Fixed time and owners: otherwise the same samples would give other bytes on another day or machine.
        self._tar = TarWriter(self._file, encoder=False, user="glioma-dist", group="glioma-dist", mtime=0)

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = Path(self._file.name)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        table = path.with_name(members_name(path.name))
        write_json(table, member_table(path))
        self._shards.append(
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": digest,
                "num_samples": self._num_in_shard,
                "members_sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
            }
        )
        self._file = self._tar = None
        self._num_in_shard = 0

    def _finish_folder(self) -> None:
        """Write the index, then exchange the finished folder for the one that may be there."""
        head = self._head
        if any(self._labels.values()):
            head = {**head, "format_version": FORMAT_VERSION, **self._labels}
        write_json(
            self._partial / INDEX_NAME,
            {**head, "num_samples": len(self._keys), "shards": self._shards},
            indent=1,
        )
        sync(self._partial)
        before = [(self.folder, self._replaced)] if self.folder.exists() else []
        rename_in_order(*before, (self._partial, self.folder))
        shutil.rmtree(self._replaced, ignore_errors=True)


def _lock_folder(folder: Path) -> int:
    """Make a folder that may be there, and hold it locked until the descriptor that is returned is closed. Raises
    OSError, BlockingIOError where another process holds it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:  # a file system without locks
            return descriptor
        if is_at(descriptor, folder):
            return descriptor
        os.close(descriptor)  # who held it before has renamed or removed it


def _are(num_classes: int) -> str:
    return "is 1 class" if num_classes == 1 else f"are {num_classes} classes"
