"""What a format of results is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from glioma_dist.inference.segmented import SegmentedImage


class Writer(Protocol):
    """Writes one result of an image.

    Whoever calls it renames `path` when it is written completely, so a writer needs no temporary file. A text
    `MARK` (names.py) in the first `MARKED_BYTES` bytes, or for a folder of those of its file .zattrs, lets a second run
    replace the result; without it only a result that summary.csv names is replaced.
    """

    def __call__(self, path: Path, segmented: SegmentedImage) -> None:
        """Write a file, or a folder, to `path`. Raises OSError or InputError where that fails."""
