"""From an image and the outlines of its cells to a sample, with every defect noted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from glioma_dist.data.convert.audit import (
    IMAGE_WITHOUT_LABELS,
    ORIENTATION,
    PIXEL_VALUES,
    SIZE_MISMATCH,
    UNREADABLE_FILE,
    Audit,
)
from glioma_dist.data.convert.cells import DrawnCells, Segmentation, draw_cells
from glioma_dist.data.convert.coco import CocoImage
from glioma_dist.data.convert.labelling import PLAIN, Labelling
from glioma_dist.data.convert.sources import describe
from glioma_dist.data.images.decoding import DecodedImage, orientation_remark
from glioma_dist.data.images.orientation import AS_STORED, HOW_TURNED, is_transposed, upright
from glioma_dist.data.sample import IGNORE, Sample, one_channel
from glioma_dist.errors import InputError

NO_CELL = "but without a cell: an empty field cannot be told from one not labelled"


class Job(NamedTuple):
    """An image to convert: its key, its file, its cells, what its metadata say of where it comes from, and what is made
    of its labels."""

    key: str
    path: Path
    image: CocoImage
    split: str
    dataset: str
    licence: str
    labelling: Labelling = PLAIN

    @property
    def where(self) -> str:
        """The image as the audit names it."""
        return f"{self.split}/{self.image.file_name}"


def prepare(job: Job, found: DecodedImage | InputError, audit: Audit) -> Sample | None:
    """The sample of an image that was read; None, with the reason in the audit, where a defect spoils it."""
    where = job.where
    if isinstance(found, InputError):
        audit.add(UNREADABLE_FILE, where, str(found), left_out=True)
        return None
    for note in found.notes:
        audit.add(PIXEL_VALUES, where, note, left_out=False)
    found = _as_labelled(job, found, audit)
    height, width = found.pixels.shape[:2]
    for size in job.image.sizes:
        if all(size) and size != (width, height):
            detail = f"the file is {width}x{height}, the labels say {size[0]}x{size[1]}"
            if size == (height, width):
                detail += ", the same turned by 90 degrees"
            audit.add(SIZE_MISMATCH, where, detail, left_out=True)
            return None
    try:
        cells = job.image.cells_in(height, width)
    except InputError as error:
        audit.add(UNREADABLE_FILE, where, str(error), left_out=True)
        return None
    if not cells:
        audit.add(IMAGE_WITHOUT_LABELS, where, f"listed, {NO_CELL}", left_out=True)
        return None
    drawn = _draw(job, cells, height, width)
    for finding in drawn.findings:
        audit.add(finding.kind, where, finding.detail, left_out=finding.spoils)
    if any(finding.spoils for finding in drawn.findings):
        return None
    if drawn.num_cells == 0:
        audit.add(IMAGE_WITHOUT_LABELS, where, "none of its labels encloses anything", left_out=True)
        return None
    group, hours = describe(job.image.file_name)
    metadata = {
        "dataset": job.dataset,
        "file_name": job.image.file_name,
        "width": width,
        "height": height,
        "group": job.image.group or group,
        "time": hours if job.image.hours is None else job.image.hours,
        "num_cells": drawn.num_cells,
        "licence": job.licence,
    }
    if job.image.frame is not None:
        metadata["frame"] = job.image.frame
    instances = drawn.instances if job.labelling.instances else None
    return Sample(job.key, one_channel(found.pixels), drawn.mask, metadata, instances)


def _draw(job: Job, cells: list[Segmentation], height: int, width: int) -> DrawnCells:
    """The cells as `job.labelling` says. Ignored regions lie below cells: what is labelled is known."""
    if job.labelling.is_plain:
        return draw_cells(cells, height, width)
    # Cells of sources that know no classes are of the first.
    classes = [*job.image.classes, *[1] * (len(cells) - len(job.image.classes))]
    drawn = draw_cells(cells, height, width, classes)
    if not job.image.ignored:
        return drawn
    region = draw_cells(job.image.ignored, height, width)
    mask = np.where((drawn.mask == 0) & (region.mask > 0), np.uint8(IGNORE), drawn.mask)
    findings = [each._replace(detail=f"ignored region: {each.detail}") for each in region.findings]
    return drawn._replace(mask=mask, findings=[*drawn.findings, *findings])


def _as_labelled(job: Job, found: DecodedImage, audit: Audit) -> DecodedImage:
    """The image as its labels lie on it: as it is stored, or turned as viewers turn it where the JSON says that width
    and height are those of the turned picture."""
    if found.orientation == AS_STORED:
        return found
    height, width = found.pixels.shape[:2]
    sizes = {size for size in job.image.sizes if all(size)}
    if is_transposed(found.orientation) and width != height and sizes == {(height, width)}:
        how = HOW_TURNED[found.orientation]
        detail = f"orientation {found.orientation}: {how}, because the labels have the size of the picture so turned"
        audit.add(ORIENTATION, job.where, detail, left_out=False)
        return found._replace(pixels=upright(found.pixels, found.orientation), orientation=AS_STORED)
    detail = f"{orientation_remark(found.orientation)}; see whether the labels lie on the cells"
    audit.add(ORIENTATION, job.where, detail, left_out=False)
    return found
