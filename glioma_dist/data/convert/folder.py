"""From images with masks in folders, as labs and programs save them, to shards, with the audit of every conversion."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from glioma_dist.data.convert.audit import (
    DOUBLED_NAME,
    IMAGE_WITHOUT_LABELS,
    LABELS_WITHOUT_IMAGE,
    ORIENTATION,
    PIXEL_VALUES,
    SIZE_MISMATCH,
    SUSPICIOUS_MASK,
    UNREADABLE_FILE,
    Audit,
)
from glioma_dist.data.convert.cells import MAX_COVERAGE
from glioma_dist.data.convert.division import Division, draw_parts
from glioma_dist.data.convert.labelling import PLAIN, Labelling
from glioma_dist.data.convert.mask_labels import MaskLabels, label_mask
from glioma_dist.data.convert.mask_pairs import Pairs, find_pairs
from glioma_dist.data.convert.pages import Page, check_pattern, find_pages
from glioma_dist.data.convert.sources import licence_in
from glioma_dist.data.convert.writing import (
    AUDIT_NAME,
    NUM_NAMES,
    count_of,
    finish,
    refuse_other_division,
    tell_groups,
    with_progress,
    write_samples,
)
from glioma_dist.data.images.choice import EVERYTHING, Choice
from glioma_dist.data.images.decoding import DecodedImage, orientation_remark
from glioma_dist.data.images.orientation import AS_STORED, HOW_TURNED, is_transposed, upright
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.sample import Sample, cells_of, one_channel
from glioma_dist.data.shards.reader import ShardWriter
from glioma_dist.data.splits import SPLIT_NAMES
from glioma_dist.errors import InputError, printable
from glioma_dist.files import cannot_write, check_new_folder


def convert_folder(
    images: Path,
    masks: Path,
    out: Path,
    dataset: str,
    suffix: str | None = None,
    division: Division | None = None,
    group_pattern: str | None = None,
    licence: str | None = None,
    strict: bool = False,
    console: Console | None = None,
    from_alpha: bool = False,
    labelling: Labelling = PLAIN,
    choice: Choice = EVERYTHING,
) -> None:
    """Write `<out>/<split>/` for each split, and `<out>/audit.json`.

    suffix: what the masks' names have after the images'; see `find_pairs`. group_pattern: see `find_pages`. licence:
    None: what a LICENSE file among the images says. from_alpha: see `Wanted`; without a suffix, the pictures of one
    folder then hold both. labelling: what the masks' values are. choice: which planes of the images; the masks have as
    many. Raises InputError where a folder holds no pair, nothing can be converted or divided so, or, with `strict`, at
    the first defect.
    """
    division = division or Division()
    console, audit = console or Console(stderr=True, markup=False, emoji=False), Audit(strict)
    check_new_folder("--out", out)
    check_pattern(group_pattern)
    division.check()
    refuse_other_division(out, SPLIT_NAMES if division.seed is not None else [division.name])
    pairs = find_pairs(images, masks, suffix, may_be_one=from_alpha)
    _tell_pairs(pairs, images, masks, audit, console)
    licence = licence or licence_in(images)
    has_values = bool(labelling.classes) or labelling.ignored_value is not None
    keeps = {"keeps_values": has_values, "keeps_numbers": labelling.instances and not has_values}
    with ImageReader() as reader:
        pages = find_pages(pairs.pairs, group_pattern, audit, keeps | {"from_alpha": from_alpha}, choice, reader)
    if group_pattern is not None:
        tell_groups([page.group for page in pages], console)
    written: dict[str, int] = {}
    # All splits get their names at the end, together: half of one draw beside half of another would leak.
    try:
        with contextlib.ExitStack() as writers, ImageReader() as reader:
            maker = _Maker(dataset, licence, audit, reader, console, labelling)
            divided = _divide(pages, division, maker, out)
            if division.seed is not None:
                # What is examined to draw splits has its defects noted then, once.
                maker = _Maker(dataset, licence, Audit(), reader, console, labelling)
            for name, part in divided.items():
                labels = {"classes": labelling.classes, "has_instances": labelling.instances}
                writer = ShardWriter(out / name, dataset, name, licence, **labels)
                written[name] = write_samples(writer, writers, maker.samples(part, name))
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(error.filename or out, error) from None
    audit.note_files_not_read(_files_not_read(pairs, images, masks, out))
    finish(out, audit, written, console)
    if not any(written.values()):
        raise InputError(f"{images}: {audit.why_none(out / AUDIT_NAME)}")


def _divide(pages: list[Page], division: Division, maker: _Maker, out: Path) -> dict[str, list[Page]]:
    """The pages of each split to write: all in one, or drawn among those that can be converted."""
    if division.seed is None:
        return {division.name: pages}
    usable = {sample.key for sample in maker.samples(pages, "examining")}
    groups = {page.key: page.group for page in pages if page.key in usable}
    return draw_parts(pages, groups, division, maker.audit, out, maker.console)


class _Maker:
    """Makes samples of pages; `audit` is told of every defect."""

    def __init__(
        self, dataset: str, licence: str, audit: Audit, reader: ImageReader, console: Console, labelling: Labelling
    ) -> None:
        self.dataset, self.licence, self.audit, self.reader, self.console = dataset, licence, audit, reader, console
        self.labelling = labelling
        self._seen: dict[bytes, str] = {}  # digest of an image's pixels -> where it was first

    def samples(self, pages: list[Page], label: str) -> Iterator[Sample]:
        """A sample for each page that can be converted, in order."""
        wanted = (each for page in pages for each in (page.image, page.mask))
        found = self.reader.read_each(wanted)
        for page in with_progress(pages, printable(label), self.console):
            sample = self._make(page, next(found), next(found))
            if sample is not None:
                yield sample

    def _make(self, page: Page, image: DecodedImage | InputError, mask: DecodedImage | InputError) -> Sample | None:
        faults = [each for each in (image, mask) if isinstance(each, InputError)]
        for fault in faults:
            self.audit.add(UNREADABLE_FILE, page.where, str(fault), left_out=True)
        if faults:
            return None
        for what, found in (("", image), ("its mask ", mask)):
            for note in found.notes:
                self.audit.add(PIXEL_VALUES, page.where, f"{what}{note}", left_out=False)
        pixels = self._as_masked(page, image, mask)
        height, width = mask.pixels.shape
        if pixels.shape[:2] != (height, width):
            detail = f"the image is {pixels.shape[1]}x{pixels.shape[0]}, its mask {width}x{height}"
            if pixels.shape[:2] == (width, height):
                detail += ", the same turned by 90 degrees"
            self.audit.add(SIZE_MISMATCH, page.where, detail, left_out=True)
            return None
        digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()
        first = self._seen.setdefault(digest, page.where)
        if first != page.where:
            detail = f"the same picture as {first}; in two splits it makes scores too good: remove one"
            self.audit.add(DOUBLED_NAME, page.where, detail, left_out=False)
        labels = self._labels_of(page, mask)
        if labels is None:
            return None
        if not labels.num_cells:
            detail = "its mask has no pixel above 0: taken as a field without cells"
            self.audit.add(IMAGE_WITHOUT_LABELS, page.where, detail, left_out=False)
        elif (covered := cells_of(labels.mask).mean()) > MAX_COVERAGE:
            detail = f"mask that covers {covered:.1%} of the image; is its background 0?"
            self.audit.add(SUSPICIOUS_MASK, page.where, detail, left_out=False)
        metadata = {
            "dataset": self.dataset,
            "file_name": page.name,
            "width": width,
            "height": height,
            "group": page.group,
            "num_cells": labels.num_cells,
            "licence": self.licence,
            **page.facts,
        }
        return Sample(page.key, one_channel(pixels), labels.mask, metadata, labels.instances)

    def _labels_of(self, page: Page, mask: DecodedImage) -> MaskLabels | None:
        """Classes and numbers of cells; None, with the reason in the audit, where the mask has another value."""
        if self.labelling.is_plain:
            return MaskLabels(mask.pixels, None, mask.num_cells)
        try:
            return label_mask(mask.pixels, self.labelling)
        except InputError as error:
            self.audit.add(UNREADABLE_FILE, page.where, f"its mask {error}", left_out=True)
            return None

    def _as_masked(self, page: Page, image: DecodedImage, mask: DecodedImage) -> np.ndarray:
        """The image as its mask lies on it: as it is stored, or turned as viewers turn it where only that has the
        mask's size: uint8 or uint16, (H, W) or (H, W, 3)."""
        if image.orientation == mask.orientation:
            return image.pixels
        if image.orientation == AS_STORED:
            detail = f"of its mask: {orientation_remark(mask.orientation)}; see whether it lies on the cells"
            self.audit.add(ORIENTATION, page.where, detail, left_out=False)
            return image.pixels
        height, width = image.pixels.shape[:2]
        if is_transposed(image.orientation) and width != height and mask.pixels.shape == (width, height):
            how = HOW_TURNED[image.orientation]
            detail = f"orientation {image.orientation}: {how}, because the mask has the size of the picture so turned"
            self.audit.add(ORIENTATION, page.where, detail, left_out=False)
            return upright(image.pixels, image.orientation)
        detail = f"{orientation_remark(image.orientation)}; see whether the mask lies on the cells"
        self.audit.add(ORIENTATION, page.where, detail, left_out=False)
        return image.pixels


def _tell_pairs(pairs: Pairs, images: Path, masks: Path, audit: Audit, console: Console) -> None:
    """Print how masks were found and the first without a partner; note all of these."""
    named = f"the image's name and {pairs.suffix}" if pairs.suffix else "the image's name"
    lines = [f"{count_of(len(pairs.pairs), 'image')} with a mask (masks have {named})"]
    for lonely, other in ((pairs.lonely_images, "mask"), (pairs.lonely_masks, "image")):
        if lonely:
            more = f" and {len(lonely) - NUM_NAMES} more" if len(lonely) > NUM_NAMES else ""
            what = count_of(len(lonely), "image" if other == "mask" else "mask")
            lines.append(
                f"{what} without {'a mask' if other == 'mask' else 'an image'}, left out: "
                f"{', '.join(lonely[:NUM_NAMES])}{more}"
            )
    console.print("\n".join(map(printable, lines)), markup=False, highlight=False, soft_wrap=True)
    for name in pairs.lonely_images:
        detail = f"no mask of this name{f' and {pairs.suffix}' if pairs.suffix else ''} in {masks}"
        audit.add(IMAGE_WITHOUT_LABELS, name, detail, left_out=True)
    for name in pairs.lonely_masks:
        audit.add(LABELS_WITHOUT_IMAGE, name, f"no image that it is the mask of in {images}", left_out=True)


def _files_not_read(pairs: Pairs, images: Path, masks: Path, out: Path) -> Iterable[str]:
    """Paths of the other files within their folders, but for what is written to `out`."""
    written = out.resolve()
    licences = {path.name for path in images.iterdir() if path.name.upper().startswith(("LICENSE", "LICENCE"))}
    for path in pairs.not_read:
        if path.parent.resolve().is_relative_to(written) or (path.parent == images and path.name in licences):
            continue
        root = images if path.is_relative_to(images) else masks
        yield path.relative_to(root).as_posix()
