"""Results of a prediction: the files of each image, and the tables of what is done and what is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from glioma_dist.config.paths import Url
from glioma_dist.csv_tables import csv_table
from glioma_dist.errors import MAX_LINE, InputError, PartialError, one_line, one_sentence, printable
from glioma_dist.evaluation.separation import is_separable
from glioma_dist.files import remove_quietly, write_atomically
from glioma_dist.inference.images import FAILED
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import DECLARED, endings

COLUMNS = (
    *("image", "plane", "time_h", "acquired", "pixel_size_um", "width", "height"),
    *("confluence", "area_um2", "components", "flags", "way"),
)
"""Of summary.csv, before those of `CELLS` and `CLASS_CONFLUENCE`, and one per format with the names of its files."""
CELLS, CLASS_CONFLUENCE = "cells", "confluence of "
"""Columns of summary.csv that a table has only where a network separates cells, or tells several classes: the second
one is followed by the name of a class."""
FAILED_COLUMNS = ("image", "step", "reason")
LONGEST_NAME = 80
"""Characters of a file's name in a line; the table has all of them."""
LONGEST_REASON = 120
STEPS = ("read", "predicted", "written")


@dataclass(frozen=True, order=True)
class Failure:
    """An image without a result: its path, the step that failed (of `STEPS`), and why."""

    image: str
    step: str
    reason: str

    @classmethod
    def of(cls, path: Path | Url, step: str, error: InputError) -> Failure:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        for ending in (each for entry in DECLARED for each in endings(entry)):
            reason = reason.rpartition(f"{ending}: ")[2]  # the path of a result says no more than the image's
        return cls(printable(path), step, printable(reason))


@dataclass(frozen=True)
class PredictedImage:
    """An image with its results. What its file does not say is None or an empty text."""

    image: Path | Url
    width: int
    """Of the image, in pixels."""
    height: int
    confluence: float
    """Share of the pixels that belong to cells, from 0 to 1."""
    components: int
    """Number of connected components of the mask. One can be a cell, a part of one, or many that touch."""
    files: dict[str, Path | Url]
    """What was written, by format: `files["mask"]` is the mask."""
    plane: str = ""
    """Which picture of its file it is."""
    hours: float | None = None
    """Time since the first picture of its file."""
    acquired: str = ""
    """When it was taken, in ISO 8601."""
    pixel_size_um: float | None = None
    """Width of a pixel, in micrometres."""
    area_um2: float | None = None
    """Area that cells cover, in square micrometres."""
    flags: tuple[str, ...] = ()
    """Names of what is doubtful about the picture."""
    way: str = "whole"
    """How the network saw the picture: whole, in strips, or in tiles."""
    cells: int | None = None
    """Number of cells, where the network has a second output that separates them; None also for an image that is too
    large for it."""
    class_confluence: dict[str, float] = field(default_factory=dict)
    """Share of the pixels that belong to each class of cells, where the network tells several."""

    @classmethod
    def of(cls, segmented: SegmentedImage, files: dict[str, Path | Url]) -> PredictedImage:
        """Make the entry of an image from its probabilities and the files that were written."""
        height, width = segmented.shape
        metadata, components = segmented.metadata, segmented.components
        covered, pixel_size = int(components.areas.sum()), metadata.pixel_size_um
        return cls(
            segmented.image,
            width,
            height,
            round(covered / (height * width), 6),
            len(components),
            files,
            metadata.plane,
            metadata.hours,
            metadata.acquired,
            pixel_size,
            round(covered * pixel_size**2, 3) if pixel_size else None,
            segmented.flags,
            segmented.way,
            len(segmented.regions) if segmented.are_cells and is_separable(height, width) else None,
            _class_confluence(segmented),
        )

    def row(self) -> dict[str, str | int | float | None]:
        """Return its row of summary.csv. Results are given by their file names."""
        return {
            "image": printable(self.image),
            "plane": printable(self.plane),
            "time_h": self.hours,
            "acquired": printable(self.acquired),
            "pixel_size_um": self.pixel_size_um,
            "width": self.width,
            "height": self.height,
            "confluence": self.confluence,
            "area_um2": self.area_um2,
            "components": self.components,
            "flags": ";".join(self.flags),
            "way": self.way,
            **({} if self.cells is None else {CELLS: self.cells}),
            **{f"{CLASS_CONFLUENCE}{printable(name)}": share for name, share in self.class_confluence.items()},
            **{kind: printable(path.name) for kind, path in self.files.items()},
        }


@dataclass(frozen=True)
class PredictionResult:
    """What a prediction wrote, and the images that failed."""

    out: Path | Url
    """Folder of the results."""
    images: tuple[PredictedImage, ...]
    """Those that are done, sorted by path."""
    failed: tuple[Failure, ...]
    """Those that are not, with the reason."""
    summary: Path | Url
    """The table of `images`: one row each."""

    def raise_for_failures(self) -> None:
        """Raise PartialError if some images failed; its message names the first ones."""
        if self.failed:
            num_images = len(self.images) + len(self.failed)
            error = PartialError(describe_failures(self.failed, num_images, self.out / FAILED))
            error.is_shared = True
            raise error


def write_summary(path: Path, images: Sequence[PredictedImage], kinds: Sequence[str]) -> None:
    """Write the table: a row per image, with a column for each of the formats `kinds`."""
    rows = [image.row() for image in images]
    optional = dict.fromkeys(column for row in rows for column in row if is_optional(column))
    write_atomically(path, csv_table((*COLUMNS, *optional, *kinds), rows))


def is_optional(column: str) -> bool:
    """Return whether a column of summary.csv is of `CELLS` or `CLASS_CONFLUENCE`."""
    return column == CELLS or column.startswith(CLASS_CONFLUENCE)


def _class_confluence(segmented: SegmentedImage) -> dict[str, float]:
    """The share of the pixels of each class, by name; empty where the network tells one."""
    height, width = segmented.shape
    components = segmented.components
    covered = np.bincount(components.classes, components.areas, minlength=segmented.num_classes + 1)[1:]
    return {
        name: round(float(pixels) / (height * width), 6)
        for name, pixels in zip(segmented.classes, covered if segmented.classes else (), strict=True)
    }


def write_failed(path: Path, failures: Sequence[Failure]) -> None:
    """Write the table of the images without a result; no file if there are none."""
    if failures:
        write_atomically(path, csv_table(FAILED_COLUMNS, [vars(failure) for failure in failures]))
    else:
        remove_quietly(path)


def describe_failures(failures: Sequence[Failure], num_images: int, table: Path | Url) -> str:
    """Say in one line of at most `MAX_LINE` characters how many images failed at which step, and why the first ones
    did."""
    times = Counter(failure.step for failure in failures)
    steps = ", ".join(f"{times[step]} not {step}" for step in STEPS if times[step])
    others = "the others are done" if len(failures) < num_images else "none is done"
    line = f"{len(failures)} of {num_images} images failed ({steps}), {others}; {printable(table)} lists them: "
    for number, failure in enumerate(failures):
        more = f"and {len(failures) - number} more"
        part = f"{one_line(Path(failure.image).name, LONGEST_NAME)}: {one_sentence(failure.reason, LONGEST_REASON)}"
        room = MAX_LINE - len(line) - len(f"; {more}")
        if len(part) > room:
            # At least one is named, however long its reason is.
            return line + (more if number else part[: max(0, room)])
        line += part + ("; " if number + 1 < len(failures) else "")
    return line
