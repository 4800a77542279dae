"""Settings of `glioma-dist shards report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from glioma_dist.config.paths import PathOrUrl
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class DataReportConfig:
    """Write one HTML file about shards: sizes, intensities, coverage and cells of the images, duplicates, images and
    groups that two splits share, and what needs a look. The file works offline and needs no other file."""

    shards: Annotated[tuple[PathOrUrl, ...], tyro.conf.Positional]
    """Folders or URLs of shards, one a split; or folders that hold splits, as glioma-dist convert writes them."""
    out: Path
    """HTML file to write."""

    def validate(self) -> None:
        """Raises InputError for a file that no browser would open, and without shards."""
        if not self.shards:
            raise InputError("SHARDS: give one or more folders or URLs of shards")
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"--out {self.out}: give a name that ends in .html, so that a browser opens it")
