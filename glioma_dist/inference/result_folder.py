"""Where a prediction's results go: a local folder, or a URL by way of a temporary one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from glioma_dist.config.inference import DEFAULT_FORMATS
from glioma_dist.config.paths import Url
from glioma_dist.data.shards.store import Store
from glioma_dist.errors import InputError, UnavailableError, printable
from glioma_dist.files import make_folder, remove_tree
from glioma_dist.inference.images import FAILED, SUMMARY
from glioma_dist.inference.result_files import (
    FOLDER_END,
    FOLDER_MARK,
    MAX_TABLE_BYTES,
    KnownResults,
    check_folder,
    listed_in,
    refuse_foreign,
    result_files,
    write_files,
)
from glioma_dist.inference.results import Failure, PredictedImage, write_failed, write_summary
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import MARKED_BYTES, ending_of, is_large
from glioma_dist.inference.writers.overlay import reduction
from glioma_dist.registry import writers


class Results:
    """Results in a local folder."""

    def __init__(self, out: Path, formats: Sequence[str]) -> None:
        self.folder = out
        self.formats = [writers.find(name, "--write") for name in formats]

    def check(self, names: Sequence[str]) -> None:
        """Raise InputError as `check_folder` does, and if a format cannot be imported. Nothing is written."""
        for entry in self.formats:
            writers.load(entry.name, "--write")
        check_folder(self.folder, names, self.formats)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Return a context manager in which results can be written."""
        make_folder(self.folder)
        yield

    def write(self, name: str, segmented: SegmentedImage) -> PredictedImage:
        """Write an image's results. See `write_files`."""
        written = PredictedImage.of(segmented, write_files(self.folder, name, segmented, self.formats))
        if large := self._describe_large(*segmented.shape):
            print(f"{printable(segmented.image)}: {large}", flush=True)
        return written

    def _describe_large(self, height: int, width: int) -> str:
        """What is other than usual about the files of a large image; empty where nothing is."""
        if not is_large(height, width):
            return ""
        told = [f"{each.name} as {each.large_ending}" for each in self.formats if each.large_ending]
        if any(each.name == "overlay" for each in self.formats):
            told.append(f"the overlay at 1/{reduction(height, width)} of the size")
        if any(ending_of(each, height, width).endswith(".tif") for each in self.formats):
            told.append("TIFFs in tiles, which Fiji opens with Bio-Formats")
        return f"{width}x{height} pixels: writes {', '.join(told)}" if told else ""

    def write_tables(self, done: Sequence[PredictedImage], failures: Sequence[Failure]) -> None:
        """Write summary.csv, and failed.csv where images failed."""
        kinds = [entry.name for entry in self.formats] + [kind for image in done for kind in image.files]
        write_summary(self.folder / SUMMARY, done, list(dict.fromkeys(kinds)))
        write_failed(self.folder / FAILED, failures)

    def is_gone(self, image: Path | Url, error: InputError) -> bool:
        """Return whether an error concerns all images to come: the folder is gone, or a store does not answer."""
        return not self.folder.is_dir() or (isinstance(image, Url) and isinstance(error, UnavailableError))


class RemoteResults(Results):
    """Results at a URL: each is written to a temporary folder, uploaded, and removed there."""

    def __init__(self, out: Url, formats: Sequence[str]) -> None:
        super().__init__(Path(), formats)
        self.out, self._store = out, Store(out)

    def check(self, names: Sequence[str]) -> None:
        """Raise InputError if results cannot be written, or would replace files that are not results. Reads the
        beginning of each file with such a name."""
        for entry in self.formats:
            writers.load(entry.name, "--write")
        self._store.check()
        found = self._store.entries()
        table = self._store.read_optional(SUMMARY, MAX_TABLE_BYTES) if SUMMARY in found else None
        known = KnownResults(listed_in((table or b"").decode("utf-8", "replace")))
        foreign = []
        for name in sorted(set(found) & set(result_files(names, self.formats))):
            if self._is_folder(name):
                start = self._store.read_optional(f"{name}/{FOLDER_MARK}", 2**20) or b""
            else:
                start = self._store.read_start(name, MARKED_BYTES)
            if not known.is_result(name, start):
                foreign.append(name)
        refuse_foreign(self.out, foreign)

    @contextmanager
    def opened(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix="glioma-dist-") as folder:
            self.folder = Path(folder)
            yield

    def write(self, name: str, segmented: SegmentedImage) -> PredictedImage:
        written = super().write(name, segmented)
        self._send(*written.files.values())
        return replace(written, files={kind: self.out / path.name for kind, path in written.files.items()})

    def write_tables(self, done: Sequence[PredictedImage], failures: Sequence[Failure]) -> None:
        super().write_tables(done, failures)
        self._send(*(self.folder / name for name in ([SUMMARY, FAILED] if failures else [SUMMARY])))
        if not failures:
            self._store.remove([FAILED])

    def is_gone(self, image: Path | Url, error: InputError) -> bool:
        return isinstance(error, UnavailableError) or super().is_gone(image, error)

    def _is_folder(self, name: str) -> bool:
        return name.endswith(".zarr")

    def _send(self, *paths: Path | Url) -> None:
        """Upload files, or folders' files: first the one with the mark, so that a second run may replace what a kill
        leaves, and last the one without which Zarr's readers see nothing."""
        contents: dict[str, bytes | Path] = {}
        for name in dict.fromkeys(path.name for path in paths):  # several formats may have the same file
            local = self.folder / name
            if not local.is_dir():
                contents[name] = local
                continue
            last = f"{name}/{FOLDER_END}"
            self._store.remove(sorted(self._store.names(name), key=lambda each: each != last))
            files = {each.relative_to(self.folder).as_posix(): each for each in local.rglob("*") if each.is_file()}
            for each in sorted(files, key=lambda each: (each == last, each != f"{name}/{FOLDER_MARK}", each)):
                contents[each] = files[each]
        try:
            self._store.put_files(contents)
        finally:
            for path in paths:
                remove_tree(self.folder / path.name)


def open_results(out: Path | Url, formats: Sequence[str] = DEFAULT_FORMATS) -> Results:
    """Return the place for the results of `--out`. Raises InputError for a URL or a format that cannot be used."""
    return RemoteResults(out, formats) if isinstance(out, Url) else Results(out, formats)
