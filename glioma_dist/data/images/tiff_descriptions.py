"""What a TIFF's description says of its pages: which frame, position and channel each is, when it was taken, and how
large a pixel is. ImageJ's, OME's and tifffile's descriptions are read; all of them can be damaged or untrue."""

from __future__ import annotations

import html
import json
import math
import re
import struct
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from glioma_dist.data.images import tiff_directories as tag
from glioma_dist.data.images.limits import credible_pixel_size
from glioma_dist.data.images.tiff_directories import Directory
from glioma_dist.data.images.tiff_stacks import IMAGEJ_PLANES, MAX_DESCRIPTION_BYTES, OME_PIXELS, OME_SIZE
from glioma_dist.files import unique_names

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
OME_CHANNEL = re.compile(rb"<(?:\w+:)?Channel\b([^>]*)>")
OME_PLANE = re.compile(rb"<(?:\w+:)?Plane\b([^>]*)>")
OME_DATE = re.compile(rb"<(?:\w+:)?AcquisitionDate>\s*([^<]{10,40}?)\s*</")
ATTRIBUTE = re.compile(rb"\b(\w+)\s*=\s*(?:\"([^\"]{0,100})\"|'([^']{0,100})')")
OME_AXES = ("Z", "C", "T")


class Place(NamedTuple):
    """Where a page belongs: its place in time, in depth (or among the pages) and among the channels; from 1, None where
    there is one."""

    frame: int | None = None
    position: int | None = None
    channel: int | None = None


class Told(NamedTuple):
    """What a description says. places: one a page. num_channels: as declared, whatever the pages are; channels: their
    names, as many or none. seconds: from one frame to the next. times: seconds of each frame, by its number from 1.
    acquired: when the file was taken, ISO 8601."""

    places: list[Place]
    num_channels: int = 1
    channels: tuple[str, ...] = ()
    seconds: float | None = None
    times: dict[int, float] | None = None
    pixel_size_um: float | None = None
    acquired: str | None = None


def read_description(pages: list[Directory]) -> Told:
    """What the description of the first page says of all. What is damaged counts as not said."""
    description = pages[0].data(tag.DESCRIPTION, MAX_DESCRIPTION_BYTES)
    if description.startswith(b"ImageJ="):
        return _imagej(description, pages)
    if b"<OME" in description[:2048] or b":OME" in description[:2048]:
        return _ome(description, pages)
    return _shaped(description, len(pages))


def _pages_in_order(number: int) -> list[Place]:
    return [Place(None, place + 1) for place in range(number)]


def _imagej(description: bytes, pages: list[Directory]) -> Told:
    """ImageJ's planes are always in the order channel, slice, frame."""
    text = description.rstrip(b"\0").decode("utf-8", "replace")
    told = dict(IMAGEJ_LINE.findall(text))
    channels, slices, frames = (_whole(told.get(name)) for name in ("channels", "slices", "frames"))
    channels = channels if IMAGEJ_PLANES.search(description) else 1
    places = _pages_in_order(len(pages))
    if len(pages) > 1 and channels * slices * frames == len(pages):
        places = [
            _place(
                (page // channels // slices, frames), (page // channels % slices, slices), (page % channels, channels)
            )
            for page in range(len(pages))
        ]
    seconds = _positive(told.get("finterval")) or _reciprocal(told.get("fps"))
    seconds = seconds and seconds * SECONDS.get(told.get("tunit", "sec").strip().lower(), math.nan)
    unit = told.get("unit", "").replace("\\u00B5", "µ").replace("\ufffd", "µ").strip().lower()
    density = rational(pages[0], tag.X_RESOLUTION)
    size = MICROMETRES[unit] / density if unit in MICROMETRES and density else None
    return Told(places, channels, seconds=_finite(seconds), pixel_size_um=credible_pixel_size(size))


def _ome(description: bytes, pages: list[Directory]) -> Told:
    """Planes by the order of dimensions, or as TiffData lists them; several pictures (positions) one after another."""
    pictures = OME_PIXELS.findall(description)
    places: list[Place] = []
    most_channels = 1
    for number, attributes in enumerate(pictures):
        sizes = _ome_sizes(attributes, pages[0])
        most_channels = max(most_channels, sizes["C"])
        if len(places) + math.prod(sizes.values()) > len(pages):
            places = []
            break  # sizes of 0 beside huge ones declare nothing
        for plane in range(math.prod(sizes.values())):
            index, rest = {}, plane
            for axis in _ome_order(attributes):
                rest, index[axis] = divmod(rest, sizes[axis])
            depth = len(pictures) * sizes["Z"]
            position = (number * sizes["Z"] + index["Z"], depth)
            places.append(_place((index["T"], sizes["T"]), position, (index["C"], sizes["C"])))
    if len(places) != len(pages):
        places = _pages_in_order(len(pages))
    elif len(pictures) == 1:
        places = _as_listed(description, _ome_sizes(pictures[0], pages[0]), places)
    told = _attributes(pictures[0]) if pictures else {}
    is_one = len(pictures) == 1
    date = OME_DATE.search(description) if is_one else None
    return Told(
        places,
        most_channels,
        _ome_names(description) if is_one else (),
        _in_unit(told, b"TimeIncrement", SECONDS, "s"),
        _ome_times(description) if is_one else None,
        credible_pixel_size(_in_unit(told, b"PhysicalSizeX", MICROMETRES, "µm")),
        iso_date(date[1].decode("ascii", "replace")) if date else None,
    )


def _attributes(text: bytes) -> dict[bytes, bytes]:
    """The attributes of an XML element. Those with &, <, quotes, and in some writers µ, hold character references."""
    found = {}
    for name, *values in ATTRIBUTE.findall(text):
        value = b"".join(values)
        found[name] = html.unescape(value.decode("utf-8", "replace")).encode() if b"&" in value else value
    return found


def _ome_sizes(attributes: bytes, page: Directory) -> dict[str, int]:
    """Sizes along Z, C and T; channels that are samples of one page count as one."""
    found = {axis.decode(): int(size) for axis, size in OME_SIZE.findall(attributes)}
    channels = math.ceil(found.get("C", 1) / max(page.number(tag.SAMPLES, 1), 1))
    return {"Z": max(found.get("Z", 1), 1), "C": max(channels, 1), "T": max(found.get("T", 1), 1)}


def _ome_order(attributes: bytes) -> tuple[str, ...]:
    """The axes of the planes, the fastest first."""
    order = _attributes(attributes).get(b"DimensionOrder", b"XYCZT").decode("ascii", "replace")
    found = tuple(axis for axis in order if axis in OME_AXES)
    if sorted(found) == sorted(OME_AXES):
        return found
    return ("C", "T", "Z") if order.find("T") < order.find("Z") else ("C", "Z", "T")


def _as_listed(description: bytes, sizes: dict[str, int], places: list[Place]) -> list[Place]:
    """Each page's place where TiffData names it plane by plane; `places` where it names runs of them, or not all."""
    found: dict[int, Place] = {}
    for listed in OME_TIFF_DATA.findall(description):
        told = _attributes(listed)
        if b"IFD" not in told or told.get(b"PlaneCount", b"1") != b"1":
            return places
        t, z, c = (
            _whole(told.get(name, b"0").decode("ascii", "replace"), 0) for name in (b"FirstT", b"FirstZ", b"FirstC")
        )
        page = _whole(told[b"IFD"].decode("ascii", "replace"), 0)
        found[page] = _place((t, sizes["T"]), (z, sizes["Z"]), (c, sizes["C"]))
    if found.keys() != set(range(len(places))) or len(set(found.values())) != len(places):
        return places
    return [found[page] for page in range(len(places))]


def _ome_names(description: bytes) -> tuple[str, ...]:
    """Names of the channels; none where one has none."""
    found = [_attributes(each).get(b"Name", b"") for each in OME_CHANNEL.findall(description)]
    names = tuple(name.decode("utf-8", "replace").strip() for name in found)
    return names if all(names) else ()


def _ome_times(description: bytes) -> dict[int, float] | None:
    """Seconds of each frame: when its first plane was taken. None where that is not told, or time stands still."""
    found: dict[int, float] = {}
    for plane in OME_PLANE.findall(description):
        told = _attributes(plane)
        frame = _whole(told.get(b"TheT", b"0").decode("ascii", "replace"), 0) + 1
        delta = told.get(b"DeltaT", b"").decode("ascii", "replace")
        unit = SECONDS.get(told.get(b"DeltaTUnit", b"s").decode("ascii", "replace"))
        seconds = 0.0 if delta and _number(delta) == 0 else _positive(delta or None)
        if seconds is not None and unit is not None:
            found[frame] = min(seconds * unit, found.get(frame, math.inf))
    times = [found[frame] for frame in sorted(found)]
    return found if len(times) > 1 and all(a < b for a, b in pairwise(times)) else None


def _shaped(description: bytes, num_pages: int) -> Told:
    """tifffile's JSON, which may name the axes; otherwise pages in their order."""
    places = _pages_in_order(num_pages)
    if not description.startswith(b'{"shape"'):
        return Told(places)
    try:
        told = json.loads(description.rstrip(b"\0"), object_pairs_hook=unique_names)
        shape, axes = [int(size) for size in told["shape"]], str(told["axes"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return Told(places)
    outer = [(axis, size) for axis, size in zip(axes, shape, strict=False) if axis not in "YXS"]
    channels, frames = (math.prod(size for axis, size in outer if axis == wanted) for wanted in "CT")
    if len(axes) != len(shape) or math.prod(size for _, size in outer) != num_pages or num_pages == 1:
        return Told(places, channels)
    found = []
    for number in range(num_pages):
        rest, index, step = number, {"C": 0, "T": 0, "Z": 0}, 1
        for axis, size in reversed(outer):
            rest, here = divmod(rest, size)
            if axis in "CT":
                index[axis] = here
            else:
                index["Z"], step = index["Z"] + here * step, step * size
        depth = num_pages // (frames * channels)
        found.append(_place((index["T"], frames), (index["Z"], depth), (index["C"], channels)))
    return Told(found, channels)


def _place(frame: tuple[int, int], position: tuple[int, int], channel: tuple[int, int]) -> Place:
    """Each an index from 0 and how many there are."""
    return Place(*(index + 1 if count > 1 else None for index, count in (frame, position, channel)))


def iso_date(text: str) -> str | None:
    """A date and time of OME or of a TIFF's tag as ISO 8601; None for what is none, such as a row of zeros."""
    text = text.strip("\0 ")
    try:
        if re.fullmatch(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d", text):
            return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").isoformat()
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return None


def _whole(text: str | None, default: int = 1) -> int:
    return int(text) if text is not None and len(text) < 10 and text.isascii() and text.isdigit() else default


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _positive(text: str | None) -> float | None:
    value = _number(text) if text is not None else None
    return value if value is not None and 0 < value < math.inf else None


def _reciprocal(text: str | None) -> float | None:
    value = _positive(text)
    return 1 / value if value else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and 0 < value < math.inf else None


def _in_unit(told: dict[bytes, bytes], name: bytes, units: dict[str, float], default: str) -> float | None:
    """A positive attribute of OME, in the unit that stands beside it."""
    value = _positive(told.get(name, b"").decode("utf-8", "replace") or None)
    unit = told.get(name + b"Unit", default.encode()).decode("utf-8", "replace")
    factor = units.get(unit)
    return _finite(value * factor) if value and factor else None


def rational(page: Directory, number: int) -> float | None:
    """A positive fraction, such as a density of pixels; None where the tag is missing or holds something else."""
    data = page.data(number, 8)
    if len(data) < 8 or page.tags[number].type != 5:
        return None
    numerator, denominator = struct.unpack_from(f"{page.order}II", data)
    return numerator / denominator if numerator and denominator else None
