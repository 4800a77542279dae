"""Whether a TIFF holds one picture or a stack: microscopes hide many behind one page, and say so in their own tags."""

from __future__ import annotations

import json
import math
import re
import struct

from glioma_dist.data.images.tiff_directories import (
    DESCRIPTION,
    IMAGE_DEPTH,
    LENGTH,
    LSM_INFO,
    SAMPLES,
    UIC1,
    UIC2,
    WIDTH,
    Directories,
    Directory,
)
from glioma_dist.errors import InputError
from glioma_dist.files import unique_names

NIH_HEADER, FLUOVIEW_HEADER = 43314, 34361
NIH_SLICES = 256
"""Where in NIH Image's header the number of slices stands, a number of 16 bits."""
FLUOVIEW_DIMENSIONS, FLUOVIEW_DIMENSION_BYTES = 284, 100
MAX_DESCRIPTION_BYTES = 2**22
IMAGEJ_PLANES = re.compile(rb"^images=(\d{1,9})\s*$", re.MULTILINE)
IMAGEJ_AXES = re.compile(rb"^(?:channels|slices|frames)=(\d{1,9})\s*$", re.MULTILINE)
OME_PIXELS = re.compile(rb"<(?:\w+:)?Pixels\b([^>]*)>")
OME_SIZE = re.compile(rb"\bSize([ZCT])\s*=\s*[\"'](\d{1,9})[\"']")


def single_page(directories: Directories, where: str) -> int:
    """The place in the chain of the one page that holds the picture; smaller versions and masks do not count.

    Raises InputError where there are more pictures: pages, or planes that a page's metadata declares.
    """
    pages = _full_size(directories, where)
    if len(pages) > 1:
        _refuse(where, len(pages), "")
    page = directories.pages[pages[0]]
    _refuse_pages_below(directories, page, where)
    for program, num_planes in _declared(page):
        if num_planes > 1:
            _refuse(where, num_planes, f" (declared by {program})")
    return pages[0]


def all_pages(directories: Directories, where: str) -> list[Directory]:
    """The pages of a stack in their order, or the one page of an image; smaller versions and masks do not count.

    Raises InputError where its metadata declares another number of planes than there are pages: some are in other
    files, or behind one page.
    """
    pages = [directories.pages[place] for place in _full_size(directories, where)]
    _refuse_pages_below(directories, pages[0], where)
    for program, num_planes in _declared(pages[0]):
        if num_planes > 1 and num_planes != len(pages):
            raise InputError(
                f"{where}: {program} declares {num_planes} planes, and the file lists {len(pages)}; open it in the "
                "microscope's program or in Fiji, and save the whole stack as a TIFF of its own"
            )
    return pages


def _full_size(directories: Directories, where: str) -> list[int]:
    """Places in the chain of the pages that are no smaller version of another and no mask."""
    pages = [place for place, page in enumerate(directories.pages) if not page.is_secondary]
    if not pages:
        raise InputError(f"{where}: a TIFF without a picture of full size; save it again as a plain TIFF")
    return pages


def _refuse_pages_below(directories: Directories, page: Directory, where: str) -> None:
    width, length = page.size
    for other in directories.below:
        if not other.is_secondary and WIDTH in other and (other.size[0] >= width or other.size[1] >= length):
            _refuse(where, 1 + len(directories.below), ", some in a page's own list (SubIFDs)")


def _refuse(where: str, num_pages: int, how: str) -> None:
    raise InputError(
        f"{where}: a stack of {num_pages} pages{how}, not one image; save each page as its own file "
        "(ImageJ: Image > Stacks > Stack to Images)"
    )


def _declared(page: Directory) -> list[tuple[str, int]]:
    """(program, number of planes) for each of a page's declarations."""
    description = page.data(DESCRIPTION, MAX_DESCRIPTION_BYTES)
    return [
        ("MetaMorph", page.count(UIC2) if UIC1 in page or UIC2 in page else 1),
        ("ImageJ", _imagej(description)),
        ("OME metadata", _ome(description, page.number(SAMPLES, 1))),
        ("tifffile", _shaped(description, page)),
        ("Zeiss LSM", _lsm(page)),
        ("NIH Image", _number_at(page, NIH_HEADER, NIH_SLICES, "h")),
        ("FluoView", _fluoview(page)),
        ("its depth", page.number(IMAGE_DEPTH, 1)),
    ]


def _imagej(description: bytes) -> int:
    if not description.startswith(b"ImageJ="):
        return 1
    planes = [int(found) for found in IMAGEJ_PLANES.findall(description)]
    axes = [int(found) for found in IMAGEJ_AXES.findall(description)]
    return max([1, *planes, math.prod(axes) if 0 not in axes else 1])


def _ome(description: bytes, samples: int) -> int:
    if b"<OME" not in description[:2048] and b":OME" not in description[:2048]:
        return 1
    total = 0
    for attributes in OME_PIXELS.findall(description):
        sizes = {axis: int(size) for axis, size in OME_SIZE.findall(attributes)}
        channels = math.ceil(sizes.get(b"C", 1) / max(samples, 1))
        total += sizes.get(b"Z", 1) * sizes.get(b"T", 1) * channels
    return max(1, total)


def _shaped(description: bytes, page: Directory) -> int:
    """tifffile writes the shape of a whole series as JSON into the first page."""
    if not description.startswith(b'{"shape"'):
        return 1
    try:
        shape = json.loads(description.rstrip(b"\0"), object_pairs_hook=unique_names)["shape"]
        num_values = math.prod(int(size) for size in shape)
    except (ValueError, TypeError, KeyError, RecursionError):
        return 1
    of_a_page = page.number(WIDTH, 0) * page.number(LENGTH, 0) * page.number(SAMPLES, 1)
    return max(1, num_values // of_a_page) if of_a_page else 1


def _lsm(page: Directory) -> int:
    """Depth times time; channels are samples of the page."""
    data = page.data(LSM_INFO, 32)
    if len(data) < 32:
        return 1
    numbers = struct.unpack(f"{page.order}8i", data)  # magic, length, then the sizes X, Y, Z, C, T
    return max(numbers[4], 1) * max(numbers[6], 1)


def _fluoview(page: Directory) -> int:
    data = page.data(FLUOVIEW_HEADER, FLUOVIEW_DIMENSIONS + 10 * FLUOVIEW_DIMENSION_BYTES)
    dimensions = struct.Struct(f"{page.order}16si80x")
    found = [
        dimensions.unpack_from(data, start)
        for start in range(FLUOVIEW_DIMENSIONS, len(data) - dimensions.size + 1, dimensions.size)
    ]
    return math.prod(size for name, size in found[2:] if size > 1 and name.strip(b"\0 "))


def _number_at(page: Directory, tag: int, offset: int, kind: str) -> int:
    data = page.data(tag, offset + struct.calcsize(kind))
    if len(data) < offset + struct.calcsize(kind):
        return 1
    return max(1, struct.unpack_from(page.order + kind, data, offset)[0])
