"""What there is to convert in a folder of images and masks: each page of each pair, with its key and its group."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from glioma_dist.data.convert.audit import SIZE_MISMATCH, UNREADABLE_FILE, Audit
from glioma_dist.data.convert.jobs import make_keys
from glioma_dist.data.convert.mask_pairs import Pair
from glioma_dist.data.convert.sources import describe
from glioma_dist.data.images.choice import EVERYTHING, Choice, choose_planes
from glioma_dist.data.images.microscope import format_of, planes_of
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.images.tiff_planes import Plane, Planes, find_planes
from glioma_dist.data.images.worker import Wanted
from glioma_dist.errors import InputError, UnavailableError, one_line


class Page(NamedTuple):
    """A picture to convert, with its mask. name: the image's path within its folder; `facts`: what its metadata get
    beside what all samples have: time, and for stacks frame, position, channel and scene."""

    key: str
    name: str
    group: str
    image: Wanted
    mask: Wanted
    facts: dict

    @property
    def where(self) -> str:
        """The picture as the audit names it."""
        return self.name if self.image.page is None else f"{self.name} (page {self.image.page})"


def find_pages(
    pairs: Sequence[Pair],
    pattern: str | None,
    audit: Audit,
    keeps: Mapping[str, bool] = MappingProxyType({}),
    choice: Choice = EVERYTHING,
    reader: ImageReader | None = None,
) -> list[Page]:
    """The chosen pages of all pairs, in the order of shards; pairs whose files do not have the same number are in the
    audit.

    choice: of the images' pages; the masks have as many. reader: describes files of microscopes' own programs.
    pattern: a regular expression whose one group, in an image's path without its ending, is its group; None: each file
    is one. keeps: what masks are decoded to, by the names of `Wanted`. Raises InputError where a name does not match.
    """
    groups = find_groups({pair.name: pair.stem for pair in pairs}, pattern)
    found: dict[str, tuple[Pair, Planes, Plane, Plane, int | None, int | None]] = {}
    for pair in pairs:
        try:
            image, channel = _chosen(pair.image, choice, reader)
            mask = find_planes(pair.mask)
        except UnavailableError:
            raise
        except InputError as error:
            audit.add(UNREADABLE_FILE, pair.name, str(error), left_out=True)
            continue
        counts = len(image.planes), len(mask.planes)
        if counts[0] != counts[1]:
            detail = f"number of pages: {counts[0]} in the image, {counts[1]} in its mask {pair.mask.name}"
            audit.add(SIZE_MISMATCH, pair.name, detail, left_out=True)
            continue
        for number, planes in enumerate(zip(image.planes, mask.planes, strict=True), 1):
            # The number is part of the ending: x.tif, page 1, and x-p001.tif may both be there.
            name = f"{pair.stem}{_ending(planes[0])}{pair.image.suffix}#{number}"
            found[name] = (pair, image, *planes, None if counts[0] == 1 else number, channel)
    keys = make_keys(found)
    pages = [_page(keys[name], groups[entry[0].name], *entry) for name, entry in found.items()]
    pages = [page._replace(mask=page.mask._replace(**keeps)) for page in pages]
    # As `find_jobs`: the hash of the key mixes wells and plates, in the same way on every run.
    return sorted(pages, key=lambda page: hashlib.sha256(page.key.encode()).digest())


def _chosen(path: Path, choice: Choice, reader: ImageReader | None) -> tuple[Planes, int | None]:
    """What an image's file tells, with the chosen ones of its planes; and the number of the channel, where it has
    several. Raises InputError."""
    where = str(path)
    if format_of(path) is not None and reader is not None:
        planes = planes_of(reader.describe(path), where)
    else:
        planes = find_planes(path, any_channels=choice.channel is not None)
        if choice == EVERYTHING:
            return planes, None  # samples of a page that are channels are taken as they are
    chosen, channel = choose_planes(planes, choice, where)
    return planes._replace(planes=tuple(chosen)), channel


def find_groups(stems: Mapping[str, str], pattern: str | None) -> dict[str, str]:
    """Each image's name -> its group. stems: the same names -> paths without their endings, which are searched.

    Raises InputError where names do not match.
    """
    if pattern is None:
        return dict(stems)
    matches = {name: re.search(pattern, stem) for name, stem in stems.items()}
    missing = [name for name, match in matches.items() if match is None or not match[1]]
    if missing:
        raise InputError(
            f"--group-pattern {one_line(pattern, 80)}: finds no group in {len(missing)} of {len(stems)} names, for "
            f"example {one_line(missing[0], 80)} (searched: the path within --images, without its ending); correct it"
        )
    return {name: match[1] for name, match in matches.items()}


def check_pattern(pattern: str | None) -> None:
    """Raises InputError for a pattern that is no regular expression, or does not have one group."""
    if pattern is None:
        return
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"--group-pattern {one_line(pattern, 80)}: is no regular expression ({error}); for example "
            "'^(.+)_f[0-9]+' takes what stands before _f01"
        ) from None
    if compiled.groups != 1:
        raise InputError(
            f"--group-pattern {one_line(pattern, 80)}: has {compiled.groups} groups in round brackets, not 1; for "
            "example '^(.+)_f[0-9]+' takes what stands before _f01"
        )


def _ending(plane: Plane) -> str:
    """What a stack's key has after the file's name: -s004, -t003, -p002, those that it has."""
    numbers = (("s", plane.scene), ("t", plane.frame), ("p", plane.position))
    return "".join(f"-{letter}{number:03d}" for letter, number in numbers if number is not None)


def _page(
    key: str,
    group: str,
    pair: Pair,
    planes: Planes,
    image: Plane,
    mask: Plane,
    number: int | None,
    channel: int | None,
) -> Page:
    hours = describe(pair.name)[1]
    facts: dict = {}
    if image.scene is not None:
        facts["scene"] = image.scene
    if channel is not None:
        facts["channel"] = planes.channels[channel - 1] if planes.channels else channel
    if image.frame is not None:
        facts["frame"] = image.frame
        if planes.seconds is not None:
            hours = (image.frame - 1) * planes.seconds / 3600
    if image.position is not None:
        facts["position"] = image.position
    pixel_size_um = planes.pixel_size_um if image.place is None else image.pixel_size_um
    if pixel_size_um is not None:
        facts["pixel_size_um"] = pixel_size_um
    facts["time"] = hours
    sample = channel - 1 if channel is not None and planes.num_samples > 1 else None
    asked = Wanted(pair.image, image.directory, number, sample=sample, microscope=image.place)
    return Page(key, pair.name, group, asked, Wanted(pair.mask, mask.directory, number, is_mask=True), facts)
