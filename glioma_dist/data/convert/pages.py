"""What there is to convert in a folder of images and masks: each page of each pair, with its key and its group."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from glioma_dist.data.convert.audit import SIZE_MISMATCH, UNREADABLE_FILE, Audit
from glioma_dist.data.convert.jobs import make_keys
from glioma_dist.data.convert.mask_pairs import Pair
from glioma_dist.data.convert.sources import describe
from glioma_dist.data.images.tiff_planes import Plane, Planes, find_planes
from glioma_dist.data.images.worker import Wanted
from glioma_dist.errors import InputError, UnavailableError, one_line


class Page(NamedTuple):
    """A picture to convert, with its mask. name: the image's path within its folder; `facts`: what its metadata get
    beside what all samples have: time, and for stacks frame and position."""

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
    pairs: Sequence[Pair], pattern: str | None, audit: Audit, keeps: Mapping[str, bool] = MappingProxyType({})
) -> list[Page]:
    """All pages of all pairs, in the order of shards; pairs whose files do not have the same number are in the audit.

    pattern: a regular expression whose one group, in an image's path without its ending, is its group; None: each file
    is one. keeps: what masks are decoded to, by the names of `Wanted`. Raises InputError where a name does not match.
    """
    groups = find_groups({pair.name: pair.stem for pair in pairs}, pattern)
    found: dict[str, tuple[Pair, Planes, Plane, Plane, int | None]] = {}
    for pair in pairs:
        try:
            image, mask = find_planes(pair.image), find_planes(pair.mask)
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
            found[name] = (pair, image, *planes, None if counts[0] == 1 else number)
    keys = make_keys(found)
    pages = [_page(keys[name], groups[entry[0].name], *entry) for name, entry in found.items()]
    pages = [page._replace(mask=page.mask._replace(**keeps)) for page in pages]
    # As `find_jobs`: the hash of the key mixes wells and plates, in the same way on every run.
    return sorted(pages, key=lambda page: hashlib.sha256(page.key.encode()).digest())


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
    """What a stack's key has after the file's name: -t003, -p002 or both."""
    frame = f"-t{plane.frame:03d}" if plane.frame is not None else ""
    return frame + (f"-p{plane.position:03d}" if plane.position is not None else "")


def _page(key: str, group: str, pair: Pair, planes: Planes, image: Plane, mask: Plane, number: int | None) -> Page:
    hours = describe(pair.name)[1]
    facts: dict = {}
    if image.frame is not None:
        facts["frame"] = image.frame
        if planes.seconds is not None:
            hours = (image.frame - 1) * planes.seconds / 3600
    if image.position is not None:
        facts["position"] = image.position
    if planes.pixel_size_um is not None:
        facts["pixel_size_um"] = planes.pixel_size_um
    facts["time"] = hours
    wanted = [
        Wanted(path, plane.directory, number, is_mask)
        for path, plane, is_mask in ((pair.image, image, False), (pair.mask, mask, True))
    ]
    return Page(key, pair.name, group, *wanted, facts)
