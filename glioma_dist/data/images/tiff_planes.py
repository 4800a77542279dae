"""Which planes a file holds: one, or those of a stack, each with its time and position; and the size of a pixel."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from pathlib import Path
from typing import NamedTuple

from glioma_dist.data.images import tiff_directories as tag
from glioma_dist.data.images.limits import MAX_FILE_BYTES
from glioma_dist.data.images.tiff_directories import Directory, read_directories
from glioma_dist.data.images.tiff_stacks import IMAGEJ_PLANES, MAX_DESCRIPTION_BYTES, OME_PIXELS, OME_SIZE, all_pages
from glioma_dist.errors import InputError
from glioma_dist.files import open_plain

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0} | {
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
}
SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3} | {
    "min": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
}
IMAGEJ_LINE = re.compile(r"^(\w+)=(.*?)\s*$", re.MULTILINE)
OME_TIFF_DATA = re.compile(rb"<(?:\w+:)?TiffData\b([^>]*)>")
ATTRIBUTE = re.compile(rb"\b(\w+)\s*=\s*[\"']([^\"']{0,100})[\"']")


class Plane(NamedTuple):
    """A picture of a file. directory: where its TIFF directory begins, in bytes; None for the only picture of a file.
    frame: its place in time, position: its place in depth or among the pages; from 1, None where there is one."""

    directory: int | None = None
    frame: int | None = None
    position: int | None = None


class Planes(NamedTuple):
    """The pictures of a file in their order, and what it tells of all. seconds: from one frame to the next."""

    planes: tuple[Plane, ...]
    seconds: float | None = None
    pixel_size_um: float | None = None


def find_planes(path: Path) -> Planes:
    """The planes of an image file. Its pixels are not looked at, and what is no TIFF is taken for one picture.

    Raises InputError for a file that cannot be read, a damaged TIFF, a stack of several channels, and one whose
    metadata declares other planes than it has.
    """
    where = str(path)
    with open_plain(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > MAX_FILE_BYTES:
            raise InputError(f"{where}: has {num_bytes} bytes, more than the {MAX_FILE_BYTES} that are read")
        if file.read(4) not in TIFF_SIGNATURES:
            return Planes((Plane(),))
        pages = all_pages(read_directories(file, num_bytes, where), where)
        description = pages[0].data(tag.DESCRIPTION, MAX_DESCRIPTION_BYTES)
        if description.startswith(b"ImageJ="):
            places, seconds, size = _imagej(description, pages, where)
        elif b"<OME" in description[:2048] or b":OME" in description[:2048]:
            places, seconds, size = _ome(description, pages, where)
        else:
            places, seconds, size = _shaped(description, len(pages), where), None, None
    if len(pages) == 1:
        return Planes((Plane(),), seconds, size)
    found = [Plane(page.offset, *place) for page, place in zip(pages, places, strict=True)]
    return Planes(tuple(found), seconds, size)


Place = tuple[int | None, int | None]
"""Frame and position."""


def _pages_in_order(number: int) -> list[Place]:
    return [(None, place + 1) for place in range(number)]


def _refuse_channels(where: str, channels: int) -> None:
    if channels > 1:
        raise InputError(
            f"{where}: a stack of {channels} channels; save the one to segment as its own file "
            "(Fiji: Image > Color > Split Channels)"
        )


def _imagej(description: bytes, pages: list[Directory], where: str) -> tuple[list[Place], float | None, float | None]:
    """ImageJ's planes are always in the order channel, slice, frame."""
    text = description.rstrip(b"\0").decode("utf-8", "replace")
    told = dict(IMAGEJ_LINE.findall(text))
    channels, slices, frames = (_whole(told.get(name)) for name in ("channels", "slices", "frames"))
    if IMAGEJ_PLANES.search(description):
        _refuse_channels(where, channels)
    places = _pages_in_order(len(pages))
    if len(pages) > 1 and slices * frames == len(pages):
        places = [_place(number // slices, frames, number % slices, slices) for number in range(len(pages))]
    seconds = _positive(told.get("finterval")) or _reciprocal(told.get("fps"))
    seconds = seconds and seconds * SECONDS.get(told.get("tunit", "sec").strip().lower(), math.nan)
    unit = told.get("unit", "").replace("\\u00B5", "µ").replace("\ufffd", "µ").strip().lower()
    density = _rational(pages[0], tag.X_RESOLUTION)
    size = MICROMETRES[unit] / density if unit in MICROMETRES and density else None
    return places, _finite(seconds), _finite(size)


def _ome(description: bytes, pages: list[Directory], where: str) -> tuple[list[Place], float | None, float | None]:
    """Planes by the order of dimensions, or as TiffData lists them; several pictures (positions) one after another."""
    pictures = OME_PIXELS.findall(description)
    places: list[Place] = []
    for number, attributes in enumerate(pictures):
        sizes = {axis: int(size) for axis, size in OME_SIZE.findall(attributes)}
        depth, frames = max(sizes.get(b"Z", 1), 1), max(sizes.get(b"T", 1), 1)
        _refuse_channels(where, math.ceil(sizes.get(b"C", 1) / max(pages[0].number(tag.SAMPLES, 1), 1)))
        if len(places) + depth * frames > len(pages):
            places = []
            break  # sizes of 0 beside huge ones declare nothing
        told = dict(ATTRIBUTE.findall(attributes))
        order = told.get(b"DimensionOrder", b"XYCZT").decode("ascii", "replace")
        is_time_first = order.find("T") < order.find("Z")
        for plane in range(depth * frames):
            z, t = (plane // frames, plane % frames) if is_time_first else (plane % depth, plane // depth)
            if len(pictures) > 1:
                z, depth_told = number * depth + z, len(pictures) * depth
            else:
                depth_told = depth
            places.append(_place(t, frames, z, depth_told))
    if len(places) != len(pages):
        places = _pages_in_order(len(pages))
    elif len(pictures) == 1:
        places = _as_listed(description, pictures[0], places)
    told = dict(ATTRIBUTE.findall(pictures[0])) if pictures else {}
    seconds = _in_unit(told, b"TimeIncrement", SECONDS, "s")
    return places, seconds, _in_unit(told, b"PhysicalSizeX", MICROMETRES, "µm")


def _as_listed(description: bytes, attributes: bytes, places: list[Place]) -> list[Place]:
    """Each page's place where TiffData names it plane by plane; `places` where it names runs of them, or not all."""
    sizes = {axis: int(size) for axis, size in OME_SIZE.findall(attributes)}
    found: dict[int, Place] = {}
    for listed in OME_TIFF_DATA.findall(description):
        told = dict(ATTRIBUTE.findall(listed))
        if b"IFD" not in told or told.get(b"PlaneCount", b"1") != b"1":
            return places
        t, z = (_whole(told.get(name, b"0").decode("ascii", "replace"), 0) for name in (b"FirstT", b"FirstZ"))
        page = _whole(told[b"IFD"].decode("ascii", "replace"), 0)
        found[page] = _place(t, sizes.get(b"T", 1), z, sizes.get(b"Z", 1))
    if found.keys() != set(range(len(places))) or len(set(found.values())) != len(places):
        return places
    return [found[page] for page in range(len(places))]


def _shaped(description: bytes, num_pages: int, where: str) -> list[Place]:
    """tifffile's JSON, which may name the axes; otherwise pages in their order."""
    places = _pages_in_order(num_pages)
    if not description.startswith(b'{"shape"'):
        return places
    try:
        told = json.loads(description.rstrip(b"\0"))
        shape, axes = [int(size) for size in told["shape"]], str(told["axes"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return places
    outer = [(axis, size) for axis, size in zip(axes, shape, strict=False) if axis not in "YXS"]
    _refuse_channels(where, math.prod(size for axis, size in outer if axis == "C"))
    if len(axes) != len(shape) or math.prod(size for _, size in outer) != num_pages or num_pages == 1:
        return places
    frames = math.prod(size for axis, size in outer if axis == "T")
    found = []
    for number in range(num_pages):
        rest, t, z, step = number, 0, 0, 1
        for axis, size in reversed(outer):
            rest, index = divmod(rest, size)
            t, z, step = (index, z, step) if axis == "T" else (t, z + index * step, step * size)
        found.append(_place(t, frames, z, num_pages // frames))
    return found


def _place(t: int, frames: int, z: int, depth: int) -> Place:
    return (t + 1 if frames > 1 else None, z + 1 if depth > 1 else None)


def _whole(text: str | None, default: int = 1) -> int:
    return int(text) if text is not None and len(text) < 10 and text.isascii() and text.isdigit() else default


def _positive(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else 0.0
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _reciprocal(text: str | None) -> float | None:
    value = _positive(text)
    return 1 / value if value else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and 0 < value < math.inf else None


def _in_unit(told: dict[bytes, bytes], name: bytes, units: dict[str, float], default: str) -> float | None:
    """A positive attribute of OME, in the unit that stands beside it."""
    value = _positive(told.get(name, b"").decode("utf-8", "replace") or None)
    unit = told.get(name + b"Unit", default.encode()).decode("utf-8", "replace").replace("&#181;", "µ")
    factor = units.get(unit)
    return _finite(value * factor) if value and factor else None


def _rational(page: Directory, number: int) -> float | None:
    data = page.data(number, 8)
    if len(data) < 8 or page.tags[number].type != 5:
        return None
    numerator, denominator = struct.unpack_from(f"{page.order}II", data)
    return numerator / denominator if numerator and denominator else None
