"""Settings of `glioma-dist report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from glioma_dist.config.paths import InputPath, OutputPath
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML file about the results of glioma-dist predict: growth curves, images with outlines, a table, and
    the model. The file works offline and needs no other file."""

    predictions: Annotated[InputPath, tyro.conf.Positional]
    """Folder or URL of the results: the --out of glioma-dist predict."""
    out: OutputPath
    """File to write, for example report.html: a path or a URL."""
    growth: Path | None = None
    """Folder that glioma-dist growth wrote, whose curves and doubling times are shown. By default: curves of the images
    that have a time in summary.csv."""
    checkpoint: Path | None = None
    """Checkpoint that the results were made with, for the section about the model. By default: the one that
    predict.json names."""

    def validate(self) -> None:
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"--out {self.out}: give a name that ends in .html, so that a browser opens it")
