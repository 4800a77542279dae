"""Where a prediction's results go: a local folder, or a URL by way of a temporary one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from glioma_dist.config.paths import Url
from glioma_dist.data.shards.store import Store
from glioma_dist.errors import InputError, UnavailableError
from glioma_dist.files import make_folder
from glioma_dist.inference.images import FAILED, SUMMARY
from glioma_dist.inference.results import (
    NUM_BYTES_THAT_TELL,
    Failure,
    PredictedImage,
    check_folder,
    is_result,
    refuse_foreign,
    result_files,
    write_failed,
    write_result,
    write_summary,
)
from glioma_dist.inference.segmented import SegmentedImage


class Results:
    """Results in a local folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out

    def check(self, names: Sequence[str]) -> None:
        """Raises InputError as `check_folder`; nothing is made."""
        check_folder(self.folder, names)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within it, results can be written."""
        make_folder(self.folder)
        yield

    def write(self, name: str, segmented: SegmentedImage) -> PredictedImage:
        """Write mask and overlay. See `write_result`."""
        return write_result(self.folder, name, segmented)

    def write_tables(self, done: Sequence[PredictedImage], failures: Sequence[Failure]) -> None:
        """Write summary.csv, and failed.csv where images failed."""
        write_summary(self.folder / SUMMARY, done)
        write_failed(self.folder / FAILED, failures)

    def is_gone(self, image: Path | Url, error: InputError) -> bool:
        """Whether an error concerns all images to come: the folder is not there any more, or a store is away."""
        return not self.folder.is_dir() or (isinstance(image, Url) and isinstance(error, UnavailableError))


class RemoteResults(Results):
    """Results at a URL: each is written to a temporary folder, uploaded, and removed there."""

    def __init__(self, out: Url) -> None:
        self.out, self._store = out, Store(out)

    def check(self, names: Sequence[str]) -> None:
        """Raises InputError where results cannot be written, or would replace what is none; asks for the beginning of
        each file of such a name that is there."""
        self._store.check()
        there = set(self._store.entries()) & set(result_files(names))
        foreign = []
        for name in sorted(there):
            start = self._store.read_start(name, NUM_BYTES_THAT_TELL)
            if not is_result(name, start):
                foreign.append(name)
        refuse_foreign(self.out, foreign)

    @contextmanager
    def opened(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix="glioma-dist-") as folder:
            self.folder = Path(folder)
            yield

    def write(self, name: str, segmented: SegmentedImage) -> PredictedImage:
        written = super().write(name, segmented)
        return replace(written, mask=self._send(written.mask), overlay=self._send(written.overlay))

    def write_tables(self, done: Sequence[PredictedImage], failures: Sequence[Failure]) -> None:
        super().write_tables(done, failures)
        self._send(self.folder / SUMMARY)
        if failures:
            self._send(self.folder / FAILED)
        else:
            self._store.remove([FAILED])

    def is_gone(self, image: Path | Url, error: InputError) -> bool:
        return isinstance(error, UnavailableError) or super().is_gone(image, error)

    def _send(self, path: Path) -> Url:
        self._store.put_file(path.name, path)
        path.unlink()
        return self.out / path.name


def open_results(out: Path | Url) -> Results:
    """Where the results of `--out` go. Raises InputError for a URL that cannot be used."""
    return RemoteResults(out) if isinstance(out, Url) else Results(out)
