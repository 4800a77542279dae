"""A TIFF's directories, read by hand and with a bound, before any library touches the file.

A directory lists a page's tags and leads to the next one. A damaged or hostile chain can lead back to itself, or have
hundreds of thousands of links, which libraries follow.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from glioma_dist.data.images.limits import COPY_AGAIN
from glioma_dist.errors import InputError

SUBFILE_TYPE, OLD_SUBFILE_TYPE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
DESCRIPTION, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 270, 273, 274, 277, 278, 279
PLANAR, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = 284, 317, 320, 322, 323, 324, 325
X_RESOLUTION, RESOLUTION_UNIT, DATE_TIME = 282, 296, 306
SUB_DIRECTORIES, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, XMP = 330, 332, 338, 339, 700
IMAGE_DEPTH, TILE_DEPTH, UIC1, UIC2, LSM_INFO = 32997, 32998, 33628, 33629, 34412

MAX_DIRECTORIES = 4096
MAX_TAGS = 4096
MAX_TAG_BYTES = 2**25
"""Of the value of one tag. The offsets of 4 million strips take as much."""

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TYPE_LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}


class Tag(NamedTuple):
    """type, count: as the file says. offset: where in the file the value lies, in bytes."""

    type: int
    count: int
    offset: int


@dataclass
class Directory:
    """One directory. tags: by number, the first where a number stands twice. offset: where in the file it begins, in
    bytes."""

    file: BinaryIO
    order: str
    tags: dict[int, Tag] = field(default_factory=dict)
    offset: int = 0

    def __contains__(self, number: int) -> bool:
        return number in self.tags

    def data(self, number: int, at_most: int = MAX_TAG_BYTES) -> bytes:
        """The bytes of a tag's value, `at_most` of them; none where there is no such tag."""
        tag = self.tags.get(number)
        if tag is None:
            return b""
        self.file.seek(tag.offset)
        return self.file.read(min(at_most, tag.count * TYPE_BYTES.get(tag.type, 1)))

    def numbers(self, number: int) -> tuple[int, ...]:
        """The whole numbers of a tag; none where there is no such tag, or it holds something else."""
        tag = self.tags.get(number)
        letter = TYPE_LETTERS.get(tag.type) if tag is not None else None
        if letter is None:
            return ()
        data = self.data(number)
        count = len(data) // TYPE_BYTES[tag.type]
        return struct.unpack_from(f"{self.order}{count}{letter}", data)

    def number(self, number: int, default: int) -> int:
        """The first whole number of a tag."""
        return next(iter(self.numbers(number)), default)

    def count(self, number: int) -> int:
        """How many values a tag says that it has; 0 where there is no such tag."""
        return self.tags[number].count if number in self.tags else 0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.number(WIDTH, 0), self.number(LENGTH, 0)

    @property
    def is_secondary(self) -> bool:
        """Whether it says of itself that it is a smaller version of another page, or a page's transparency mask."""
        return bool(self.number(SUBFILE_TYPE, 0) & 0b101) or self.number(OLD_SUBFILE_TYPE, 1) == 2


class Directories(NamedTuple):
    """pages: those of the file's chain, in order. below: those that they name as their own (SubIFDs)."""

    pages: list[Directory]
    below: list[Directory]


class _Layout(NamedTuple):
    """How a file writes its directories: byte order, and the struct formats of counts, entries and offsets."""

    order: str
    count: str
    entry: str
    offset: str


def read_directories(file: BinaryIO, num_bytes: int, where: object) -> Directories:
    """All directories of a TIFF of `num_bytes`. Raises InputError, naming `where`, for what is no TIFF, and where a
    chain leads out of the file, back to itself, or on and on."""
    file.seek(0)
    head = file.read(16)
    layout, first = _layout(head, where)
    seen: set[int] = set()
    pages = _follow(file, num_bytes, first, layout, seen, where)
    below: list[Directory] = []
    for page in pages:
        for offset in page.numbers(SUB_DIRECTORIES)[:MAX_DIRECTORIES]:
            if offset and offset not in seen:
                below += _follow(file, num_bytes, offset, layout, seen, where)
    return Directories(pages, below)


def read_directory(file: BinaryIO, num_bytes: int, offset: int, where: object) -> Directory:
    """The one directory of a TIFF of `num_bytes` that begins at `offset`. Raises InputError, naming `where`."""
    file.seek(0)
    layout, _ = _layout(file.read(16), where)
    directory, _ = _read_one(file, num_bytes, offset, layout, where)
    return directory


def _layout(head: bytes, where: object) -> tuple[_Layout, int]:
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
    if version == 42:
        return _Layout(order, f"{order}H", f"{order}HHI", f"{order}I"), struct.unpack(f"{order}I", head[4:8])[0]
    if version == 43 and len(head) == 16 and struct.unpack(f"{order}HH", head[4:8]) == (8, 0):
        return _Layout(order, f"{order}Q", f"{order}HHQ", f"{order}Q"), struct.unpack(f"{order}Q", head[8:16])[0]
    raise InputError(f"{where}: not a TIFF file (its first bytes are {head[:8]!r}); give the image itself")


def _follow(
    file: BinaryIO, num_bytes: int, offset: int, layout: _Layout, seen: set[int], where: object
) -> list[Directory]:
    """The directories of one chain. `seen`: offsets of directories met so far, in this chain and others."""
    found = []
    while offset:
        if offset in seen:
            raise InputError(f"{where}: damaged TIFF: its chain of pages leads back to byte {offset}; {COPY_AGAIN}")
        if len(seen) >= MAX_DIRECTORIES:
            raise InputError(
                f"{where}: a stack of more than {MAX_DIRECTORIES} pages, not one image; save each page as its own file"
            )
        seen.add(offset)
        directory, offset = _read_one(file, num_bytes, offset, layout, where)
        found.append(directory)
    return found


def _read_one(file: BinaryIO, num_bytes: int, offset: int, layout: _Layout, where: object) -> tuple[Directory, int]:
    """The directory at `offset`, and the offset of the next one (0: none)."""
    count_bytes, entry_bytes, offset_bytes = map(struct.calcsize, (layout.count, layout.entry, layout.offset))
    entry_bytes += offset_bytes
    file.seek(min(offset, num_bytes))
    head = file.read(count_bytes)
    if len(head) < count_bytes:
        raise InputError(
            f"{where}: the TIFF is cut short at {num_bytes} bytes: a page should begin at byte {offset}; {COPY_AGAIN}"
        )
    (num_tags,) = struct.unpack(layout.count, head)
    if num_tags > MAX_TAGS:
        raise InputError(f"{where}: damaged TIFF: {num_tags} tags at byte {offset}, more than {MAX_TAGS}")
    data = file.read(num_tags * entry_bytes)
    if len(data) < num_tags * entry_bytes:
        raise InputError(f"{where}: the TIFF is cut short at {num_bytes} bytes, within a page's tags; {COPY_AGAIN}")
    directory = Directory(file, layout.order, offset=offset)
    for number in range(num_tags):
        tag, kind, count = struct.unpack_from(layout.entry, data, number * entry_bytes)
        value_bytes = count * TYPE_BYTES.get(kind, 1)
        place = offset + count_bytes + (number + 1) * entry_bytes - offset_bytes
        if value_bytes > offset_bytes:
            (place,) = struct.unpack_from(layout.offset, data, (number + 1) * entry_bytes - offset_bytes)
        if value_bytes > MAX_TAG_BYTES:
            raise InputError(f"{where}: damaged TIFF: tag {tag} claims {value_bytes} bytes, more than {MAX_TAG_BYTES}")
        directory.tags.setdefault(tag, Tag(kind, count, place))
    following = file.read(offset_bytes)
    # Some writers end the file with the last tag.
    return directory, struct.unpack(layout.offset, following)[0] if len(following) == offset_bytes else 0
