"""Files of microscopes' own programs: which planes they hold, and one plane at a time.

Each format is read by a library of the extra `microscope`, in the process that decodes images: such files are complex,
and a damaged one can crash its library. A format is one file with an opener and one row of `FORMATS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from glioma_dist.data.images.choice import MAX_PLANES
from glioma_dist.data.images.limits import COPY_AGAIN, MAX_FILE_BYTES, check_size, credible_pixel_size
from glioma_dist.data.images.numbers import SPARE_TIMES, to_16_bit
from glioma_dist.data.images.tiff_descriptions import iso_date
from glioma_dist.data.images.tiff_planes import MAX_HOURS, Plane, Planes, later
from glioma_dist.errors import InputError, one_line
from glioma_dist.extras import require
from glioma_dist.files import open_plain

EXTRA = "microscope"
MAX_SCENES = 2000
"""Of one file: the wells and fields of a plate."""
MAX_NAMES, MAX_NAME = 100, 60
"""Of channels: how many are told, and how long each may be."""


class Format(NamedTuple):
    """name: in words. signatures: how files begin. library: what reads them, as it is imported. opener: the
    `MicroscopeFile` of it, "module:attribute", called with a path."""

    name: str
    signatures: tuple[bytes, ...]
    library: str
    opener: str


FORMATS = {
    ".nd2": Format(
        "a Nikon ND2", (b"\xda\xce\xbe\x0a", b"\0\0\0\x0cjP  "), "nd2", "glioma_dist.data.images.nd2_files:Nd2File"
    ),
    ".czi": Format("a Zeiss CZI", (b"ZISRAWFILE",), "pylibCZIrw", "glioma_dist.data.images.czi_files:CziFile"),
    ".lif": Format("a Leica LIF", (b"\x70\0\0\0",), "liffile", "glioma_dist.data.images.lif_files:LifFile"),
}
"""By the suffix of files."""
MICROSCOPE_SUFFIXES = tuple(FORMATS)


class Scene(NamedTuple):
    """An image of a file: one position of the stage. num_pages: depths, and all other axes but time and channel.
    num_samples: 3 of colours. channels: names, as many or none. hours: from one time to the next. acquired: when the
    first was taken, ISO 8601. by_rows: whether some rows are read without all others."""

    num_times: int
    num_channels: int
    num_pages: int
    height: int
    width: int
    dtype: str
    num_samples: int = 1
    channels: tuple[str, ...] = ()
    pixel_size_um: float | None = None
    hours: float | None = None
    acquired: str | None = None
    by_rows: bool = False


class Place(NamedTuple):
    """A plane within its file, each number from 0, and what its scene says of it."""

    scene: int
    time: int
    channel: int
    page: int
    height: int
    width: int
    pixel_bytes: int
    by_rows: bool


class MicroscopeFile(Protocol):
    """An open file. Its methods may raise anything where the file is damaged."""

    def scenes(self) -> list[Scene]:
        """Return its images, in their order."""

    def read(self, scene: int, time: int, channel: int, page: int, rows: slice) -> np.ndarray:
        """Return rows of a plane, (rows, W), or (rows, W, 3) RGB; numbers from 0."""

    def close(self) -> None:
        """Close it."""


def format_of(path: str | Path) -> Format | None:
    """The format of a file by its suffix; None for others."""
    return FORMATS.get(os.path.splitext(path)[1].lower())


def require_library(path: str | Path, needed_by: str) -> None:
    """Check that the library that reads a file is installed, without importing it. Raises InputError."""
    require(EXTRA, needed_by, (FORMATS[os.path.splitext(path)[1].lower()].library,))


@contextmanager
def open_microscope(path: str | Path, where: str) -> Iterator[MicroscopeFile]:
    """Open a file in this process, which a damaged one can crash. where: names it in errors.

    Raises InputError where its library is missing, and for whatever goes wrong within.
    """
    kind = format_of(path)
    if kind is None:
        raise InputError(f"{where}: is of none of {', '.join(FORMATS)}")
    require_library(path, where)
    _check_beginning(Path(path), kind, where)
    module, _, attribute = kind.opener.partition(":")
    opener = getattr(import_module(module), attribute)
    try:
        file = opener(Path(path))
        try:
            yield file
        finally:
            file.close()
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of whatever library
        raise InputError(
            f"{where}: cannot be read as {kind.name} ({one_line(error, 160) or type(error).__name__}): it is damaged, "
            f"cut short, or of a rare kind; {COPY_AGAIN}, or save it from the microscope's program as TIFF"
        ) from None


def _check_beginning(path: Path, kind: Format, where: str) -> None:
    with open_plain(path) as file:
        num_bytes, first = os.fstat(file.fileno()).st_size, file.read(16)
    if not first:
        raise InputError(f"{where}: is empty; copy the file again")
    if num_bytes > MAX_FILE_BYTES:
        raise InputError(f"{where}: has {num_bytes} bytes, more than the {MAX_FILE_BYTES} that are read")
    if not first.startswith(kind.signatures):
        raise InputError(
            f"{where}: is not {kind.name} by its first bytes ({first[:8]!r}), whatever its name; rename it"
        )


def describe_file(path: str | Path, where: str) -> list[Scene]:
    """The scenes of a file. Pixels are not read. Raises InputError."""
    with open_microscope(path, where) as file:
        found = [_checked(scene, where) for scene in file.scenes()[: MAX_SCENES + 1]]
    if not found or len(found) > MAX_SCENES:
        what = f"more than {MAX_SCENES} images" if found else "no image of rows and columns"
        raise InputError(f"{where}: holds {what}; save those to segment as files of their own")
    return found


def _checked(scene: Scene, where: str) -> Scene:
    sizes = [int(number) for number in scene[:5]]
    if min(sizes) < 1 or scene.num_samples not in (1, 3) or np.dtype(scene.dtype).kind not in "uif":
        raise InputError(f"{where}: damaged: an image of {scene[:5]} pixels of {scene.dtype}; {COPY_AGAIN}")
    names = tuple(one_line(name, MAX_NAME) for name in scene.channels[:MAX_NAMES])
    return Scene(
        *sizes,
        str(scene.dtype),
        scene.num_samples,
        names if len(names) == scene.num_channels and all(names) else (),
        credible_pixel_size(scene.pixel_size_um),
        scene.hours if scene.hours is not None and 0 < scene.hours < MAX_HOURS else None,
        iso_date(scene.acquired) if scene.acquired else None,
        bool(scene.by_rows),
    )


def planes_of(scenes: Sequence[Scene], where: str) -> Planes:
    """All planes of a file, scene after scene, each scene by time, then page, then channel. Raises InputError."""
    most = max(scenes, key=lambda scene: scene.num_channels)
    total = sum(scene.num_times * scene.num_channels * scene.num_pages for scene in scenes)
    if total > MAX_PLANES:
        raise InputError(f"{where}: {total} planes, more than {MAX_PLANES}; save a part of it as a file of its own")
    found = []
    for number, scene in enumerate(scenes):
        shown = number + 1 if len(scenes) > 1 else None
        for time, page, channel in product(*map(range, (scene.num_times, scene.num_pages, scene.num_channels))):
            hours = time * scene.hours if scene.hours is not None and scene.num_times > 1 else None
            size = scene.height, scene.width, np.dtype(scene.dtype).itemsize * scene.num_samples
            plane = Plane(
                frame=time + 1 if scene.num_times > 1 else None,
                position=page + 1 if scene.num_pages > 1 else None,
                channel=channel + 1 if most.num_channels > 1 else None,
                hours=hours,
                acquired=later(scene.acquired, hours),
                scene=shown,
                place=Place(number, time, channel, page, *size, scene.by_rows),
                pixel_size_um=scene.pixel_size_um,
            )
            found.append(plane)
    hours = scenes[0].hours
    return Planes(
        tuple(found),
        hours * 3600 if hours is not None else None,
        scenes[0].pixel_size_um,
        most.num_channels,
        most.channels,
    )


def decode_microscope_plane(
    path: str | Path, place: Place, where: str, reserve: Callable[[int], None]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """One plane, (H, W) or (H, W, 3), uint8 or uint16, and notes. reserve: see `decoding.decode_file`.

    Raises InputError.
    """
    with open_microscope(path, where) as file:
        kind = np.dtype(f"u{place.pixel_bytes}") if place.pixel_bytes in (1, 2) else np.dtype(np.float64)
        num_bytes = check_size(place.width, place.height, where, 1, max(place.pixel_bytes, kind.itemsize))
        reserve(SPARE_TIMES * num_bytes)
        pixels = read_rows(file, place, slice(0, place.height), where)
        return to_16_bit(pixels, where)


def read_rows(file: MicroscopeFile, place: Place, rows: slice, where: str) -> np.ndarray:
    """Rows of a plane as the file has them. Raises InputError where it does not have them any more."""
    pixels = np.asarray(file.read(*place[:4], rows))
    if pixels.shape[:2] != (rows.stop - rows.start, place.width) or pixels.shape[2:] not in ((), (3,)):
        raise InputError(
            f"{where}: {pixels.shape} values where {place.width}x{place.height} pixels are said; {COPY_AGAIN}"
        )
    return pixels
