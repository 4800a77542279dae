"""Files of a prediction: masks, overlays, and the tables of what is done and what is not."""

from __future__ import annotations

import csv
import io
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.config.paths import Url
from glioma_dist.errors import MAX_LINE, InputError, PartialError, one_line, printable
from glioma_dist.files import check_new_folder, remove_quietly, write_atomically
from glioma_dist.inference.images import FAILED, MASK, OVERLAY, SUMMARY
from glioma_dist.inference.segmented import SegmentedImage

OUTLINE_COLOUR = (255, 200, 0)
COLUMNS = ("image", "width", "height", "confluence", "mask", "overlay")
FAILED_COLUMNS = ("image", "step", "reason")
AUTHOR = b"Software\0glioma-dist predict.py"
"""Of each PNG's tEXt chunk (PNG specification, section 11.3.3.2): it tells results from a user's own files."""
HEADER_END = 33
"""Bytes of a PNG's signature and its header."""
NUM_BYTES_THAT_TELL = HEADER_END + 12 + len(AUTHOR)
"""Of a file, from its beginning: whether it is a result."""
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
        reason = str(error).removeprefix(f"{path}: ")
        for ending in (MASK, OVERLAY):  # the path of a result says no more than the image's
            reason = reason.rpartition(f"{ending}: ")[2]
        return cls(printable(path), step, printable(reason))


@dataclass(frozen=True)
class PredictedImage:
    """An image with its results."""

    image: Path | Url
    width: int
    """Of the image and of its mask, in pixels."""
    height: int
    confluence: float
    """Share of the pixels that belong to cells, from 0 to 1."""
    mask: Path | Url
    """PNG, 255 where there is a cell and 0 elsewhere."""
    overlay: Path | Url
    """PNG: the image with its cells tinted and outlined."""

    def row(self) -> dict[str, str | int | float]:
        """Its row of summary.csv: the results by the names that they have in its folder."""
        return {
            "image": printable(self.image),
            "width": self.width,
            "height": self.height,
            "confluence": self.confluence,
            "mask": printable(self.mask.name),
            "overlay": printable(self.overlay.name),
        }


@dataclass(frozen=True)
class PredictionResult:
    """What a prediction wrote, and the images that have no mask."""

    out: Path | Url
    """Folder of the results."""
    images: tuple[PredictedImage, ...]
    """Those that have a mask, sorted by path."""
    failed: tuple[Failure, ...]
    """Those that have none, with the reason."""
    summary: Path | Url
    """The table of `images`: one row each."""

    def raise_for_failures(self) -> None:
        """Raises PartialError, whose message names the first ones, where some images have no mask."""
        if self.failed:
            num_images = len(self.images) + len(self.failed)
            error = PartialError(describe_failures(self.failed, num_images, self.out / FAILED))
            error.is_shared = True
            raise error


def check_folder(folder: Path, names: Sequence[str]) -> None:
    """Raises InputError where the results cannot be written to `folder`, or where one would replace a file that is
    none: a mask drawn by hand, for example, of the same name."""
    check_new_folder("--out", folder)
    refuse_foreign(folder, [name for name in result_files(names) if not _may_replace(folder / name)])


def result_files(names: Sequence[str]) -> list[str]:
    """All files of a prediction whose images have these names."""
    return [f"{name}{ending}" for name in names for ending in (MASK, OVERLAY)] + [SUMMARY, FAILED]


def refuse_foreign(folder: Path | Url, foreign: Sequence[str]) -> None:
    """Raises InputError where there are files that the results would replace and that are none."""
    if foreign:
        raise InputError(
            f"--out {folder}: holds {len(foreign)} files that predict.py would replace and did not write, the first is "
            f"{foreign[0]}; give another folder"
        )


def _may_replace(path: Path) -> bool:
    """Whether there is no such file, or one that predict.py wrote."""
    try:
        found = path.lstat()
    except OSError:
        return True  # also names that are too long: that image fails when it is written, and is named
    if not stat.S_ISREG(found.st_mode):
        return False
    try:
        with path.open("rb") as file:
            return is_result(path.name, file.read(NUM_BYTES_THAT_TELL))
    except OSError:
        return False


def is_result(name: str, start: bytes) -> bool:
    """Whether a file was written by predict.py, by its first bytes."""
    if name.endswith(".csv"):
        return start.startswith((",".join(COLUMNS[:3]).encode(), ",".join(FAILED_COLUMNS).encode()))
    return AUTHOR in start


def write_result(folder: Path, name: str, segmented: SegmentedImage) -> PredictedImage:
    """Write mask and overlay, both or none. Raises InputError where one cannot be written."""
    mask = segmented.mask
    height, width = mask.shape
    confluence = round(float(mask.mean()), 6)
    mask_file, overlay_file = folder / f"{name}{MASK}", folder / f"{name}{OVERLAY}"
    write_atomically(overlay_file, _png(overlay(segmented.pixels, mask)[..., ::-1]))  # first: its name is longer
    try:
        write_atomically(mask_file, _png(mask * 255))
    except InputError:
        remove_quietly(overlay_file)
        raise
    return PredictedImage(segmented.image, width, height, confluence, mask_file, overlay_file)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with its cells tinted and outlined. image: uint8 (H, W) or (H, W, 3); mask: (H, W) of 0 and 1.
    Returns uint8 (H, W, 3) RGB."""
    picture = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    tint = (0.85 * picture + 0.15 * np.array(OUTLINE_COLOUR)).astype(np.uint8)
    picture = np.where(mask[..., None] > 0, tint, picture)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(mask.shape) / 1000))
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, OUTLINE_COLOUR, thickness)


def _png(pixels: np.ndarray) -> bytes:
    """PNG bytes that say who wrote them. pixels: uint8, (H, W) grey or (H, W, 3) BGR. Encoded in memory: OpenCV
    crashes on file names that are not UTF-8."""
    encoded, data = cv2.imencode(".png", pixels)
    if not encoded:
        raise ValueError(f"OpenCV could not write a PNG of {pixels.dtype} {pixels.shape}")
    chunk = b"tEXt" + AUTHOR
    mark = struct.pack(">I", len(AUTHOR)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"".join([data[:HEADER_END].tobytes(), mark, data[HEADER_END:].tobytes()])


def write_summary(path: Path, images: Sequence[PredictedImage]) -> None:
    """The table, one row an image."""
    write_atomically(path, _csv(COLUMNS, [image.row() for image in images]))


def write_failed(path: Path, failures: Sequence[Failure]) -> None:
    """The images without a result; no file where there are none."""
    if failures:
        write_atomically(path, _csv(FAILED_COLUMNS, [vars(failure) for failure in failures]))
    else:
        remove_quietly(path)


def _csv(columns: Sequence[str], rows: Sequence[dict]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def describe_failures(failures: Sequence[Failure], num_images: int, table: Path | Url) -> str:
    """One line of at most `MAX_LINE` characters: how many failed at which step, and the first ones with the reason."""
    times = Counter(failure.step for failure in failures)
    steps = ", ".join(f"{times[step]} not {step}" for step in STEPS if times[step])
    others = "the others are done" if len(failures) < num_images else "none is done"
    line = f"{len(failures)} of {num_images} images failed ({steps}), {others}; {printable(table)} lists them: "
    for number, failure in enumerate(failures):
        more = f"and {len(failures) - number} more"
        part = f"{one_line(Path(failure.image).name, LONGEST_NAME)}: {one_line(failure.reason, LONGEST_REASON)}"
        room = MAX_LINE - len(line) - len(f"; {more}")
        if len(part) > room:
            # At least one is named, however long its reason is.
            return line + (more if number else part[: max(0, room)])
        line += part + ("; " if number + 1 < len(failures) else "")
    return line
