"""The files of a prediction's results: which may be replaced, and how those of an image are written all together."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glioma_dist.config.paths import Url
from glioma_dist.csv_tables import plain_text
from glioma_dist.errors import InputError, RunError, one_line
from glioma_dist.files import (
    cannot_write,
    check_new_folder,
    remove_tree,
    sync,
)
from glioma_dist.hidden_folder import hidden_folder, replace_by, sync_tree
from glioma_dist.inference.images import FAILED, SUMMARY
from glioma_dist.inference.results import COLUMNS, FAILED_COLUMNS, is_optional
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import DECLARED, MARK, MARKED_BYTES, ending_of, endings
from glioma_dist.registry import WriterEntry

FOLDER_MARK, FOLDER_END = ".zattrs", ".zgroup"
"""Of a result that is a folder: the file with the mark, and the one that readers look for."""
TABLES = (SUMMARY, FAILED)
MAX_TABLE_BYTES = 2**28


@dataclass(frozen=True)
class KnownResults:
    """Tells results of a folder from other files."""

    listed: frozenset[str] = frozenset()
    """Names that the folder's summary.csv has in the columns of others' formats, which may put no mark into files."""

    def is_result(self, name: str, start: bytes) -> bool:
        """Return whether predict wrote a file of this name. start: its first `MARKED_BYTES`."""
        if name in TABLES:
            return start.startswith((",".join(COLUMNS[:3]).encode(), ",".join(FAILED_COLUMNS).encode()))
        return MARK.encode() in start or name in self.listed


def result_files(names: Sequence[str], entries: Sequence[WriterEntry]) -> list[str]:
    """Return the names of all files of a prediction whose images have these names."""
    all_endings = dict.fromkeys(ending for entry in entries for ending in endings(entry))
    return [f"{name}{ending}" for name in names for ending in all_endings] + list(TABLES)


def listed_in(table: str) -> frozenset[str]:
    """Return the files of others' formats that a summary.csv of predict names."""
    if not table.startswith(",".join(COLUMNS)):
        return frozenset()
    try:
        rows = list(csv.DictReader(table.splitlines()))
    except csv.Error:  # damaged, for example a quote that nothing closes
        return frozenset()
    own = {*COLUMNS, *(entry.name for entry in DECLARED), None}
    columns = [column for column in (rows[0].keys() - own if rows else ()) if not is_optional(str(column))]
    return frozenset(plain_text(row[column]) for row in rows for column in columns if row[column])


def check_folder(folder: Path, names: Sequence[str], entries: Sequence[WriterEntry]) -> None:
    """Raise InputError if results cannot be written to `folder`, or would replace a file that is not a result, for
    example a mask that was drawn by hand."""
    check_new_folder("--out", folder)
    known = KnownResults(listed_in(_start(folder / SUMMARY, MAX_TABLE_BYTES).decode("utf-8", "replace")))
    refuse_foreign(folder, [name for name in result_files(names, entries) if not _may_replace(folder / name, known)])


def refuse_foreign(folder: Path | Url, foreign: Sequence[str]) -> None:
    """Raise InputError if there are files that the results would replace and that are not results."""
    if foreign:
        raise InputError(
            f"--out {folder}: holds {len(foreign)} files that glioma-dist predict would replace and did not write, "
            f"the first is {foreign[0]}; give another folder"
        )


def _may_replace(path: Path, known: KnownResults) -> bool:
    """Whether there is no such file or folder, or one that predict wrote."""
    try:
        found = path.lstat()
    except OSError:
        return True  # also names that are too long: that image fails when it is written, and is named
    if stat.S_ISDIR(found.st_mode):
        return known.is_result(path.name, _start(path / FOLDER_MARK, MARKED_BYTES))
    return stat.S_ISREG(found.st_mode) and known.is_result(path.name, _start(path, MARKED_BYTES))


def _start(path: Path, num_bytes: int) -> bytes:
    """The first bytes of a plain file; none of what is no such file or cannot be read."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError:
        return b""


def write_files(
    folder: Path, name: str, segmented: SegmentedImage, entries: Sequence[WriterEntry]
) -> dict[str, Path | Url]:
    """Write an image's results of all formats, or none. Returns them by format.

    They are written to a hidden folder, and renamed when all are complete. What a kill leaves of that folder is removed
    by the next run. Raises InputError where one cannot be written.
    """
    paths = {entry.name: folder / f"{name}{ending_of(entry, *segmented.shape)}" for entry in entries}
    temporary = {path: f"result{path.name[len(name) :]}" for path in paths.values()}
    written: list[Path] = []
    path = folder
    try:
        with hidden_folder(folder / name) as hidden:
            for entry in entries:
                path = paths[entry.name]
                new = hidden / temporary[path]
                if not new.exists():  # else another format has written the same
                    _write(entry, new, segmented)
                    sync_tree(new)
            # The longest name first: where one is too long for the file system, none is renamed.
            for path in sorted(temporary, key=lambda each: -len(os.fsencode(each.name))):
                replace_by(hidden / temporary[path], path)
                written.append(path)
        sync(folder)
    except OSError as error:
        for each in written:
            remove_tree(each)
        raise cannot_write(path, error) from error
    return dict(paths)


def _write(entry: WriterEntry, path: Path, segmented: SegmentedImage) -> None:
    """Write one result. What goes wrong in a format of another package concerns the image, and not the run."""
    writer = entry.load()
    if entry in DECLARED:
        writer(path, segmented)
        return
    try:
        writer(path, segmented)
    except (OSError, RunError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"--write {entry.name}: {one_line(f'{type(error).__name__}: {error}', 200)}") from error
    if not path.exists():
        raise InputError(f"--write {entry.name}: wrote nothing to the path that it was given")
