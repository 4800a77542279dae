"""Which planes a file holds: one, or those of a stack, each with its time, position and channel; a pixel's size."""

from __future__ import annotations

import math
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple

from glioma_dist.data.images import tiff_directories as tag
from glioma_dist.data.images.limits import MAX_FILE_BYTES
from glioma_dist.data.images.tiff_colours import num_grey_samples
from glioma_dist.data.images.tiff_descriptions import Told, iso_date, rational, read_description
from glioma_dist.data.images.tiff_directories import Directory, read_directories
from glioma_dist.data.images.tiff_stacks import all_pages
from glioma_dist.errors import InputError
from glioma_dist.files import open_plain

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
INCH_UM, CENTIMETRE_UM = 25_400.0, 10_000.0
RESOLUTION_UNITS = {2: INCH_UM, 3: CENTIMETRE_UM}
"""Values of the tag ResolutionUnit, in micrometres."""
OF_MICROSCOPES_UM = (0.01, 10.0)
"""Sizes of a pixel that a plain TIFF is believed: 72 or 300 dots an inch are said for a printer."""
MAX_HOURS = 1e6
"""Of a time-lapse: a century. A damaged interval can be any number."""


class Plane(NamedTuple):
    """A picture of a file. directory: where its TIFF directory begins, in bytes; None for the only picture of a file.
    frame: its place in time, position: its place in depth or among the pages, channel: from 1, None where there is one.
    hours: since the first frame. acquired: when it was taken, ISO 8601. Of a microscope's file: scene: its number from
    1, where there are several; place: a `microscope.Place`; pixel_size_um: of its scene."""

    directory: int | None = None
    frame: int | None = None
    position: int | None = None
    channel: int | None = None
    hours: float | None = None
    acquired: str | None = None
    scene: int | None = None
    place: tuple | None = None
    pixel_size_um: float | None = None


class Planes(NamedTuple):
    """The pictures of a file in their order, and what it tells of all. seconds: from one frame to the next.

    num_channels: of the file, whether they are pages or samples of each page (num_samples); channels: their names, as
    many or none. printed_size_um: the size of a pixel by the resolution of a plain TIFF, if a microscope can have it.
    """

    planes: tuple[Plane, ...]
    seconds: float | None = None
    pixel_size_um: float | None = None
    num_channels: int = 1
    channels: tuple[str, ...] = ()
    num_samples: int = 1
    printed_size_um: float | None = None


def find_planes(path: Path, any_channels: bool = False) -> Planes:
    """The planes of an image file. Its pixels are not looked at, and what is no TIFF is taken for one picture.

    Raises InputError for a file that cannot be read, a damaged TIFF, a stack of several channels (unless
    `any_channels`), and one whose metadata declares other planes than it has.
    """
    with open_plain(path) as file:
        found = read_planes(file, os.fstat(file.fileno()).st_size, str(path))
    if found.num_channels > found.num_samples and not any_channels:
        raise InputError(
            f"{path}: a stack of {found.num_channels} channels; save the one to segment as its own file "
            "(Fiji: Image > Color > Split Channels)"
        )
    return found


def read_planes(file: BinaryIO, num_bytes: int, where: str) -> Planes:
    """`find_planes` of an open file of `num_bytes`, of any number of channels."""
    if num_bytes > MAX_FILE_BYTES:
        raise InputError(f"{where}: has {num_bytes} bytes, more than the {MAX_FILE_BYTES} that are read")
    file.seek(0)
    if file.read(4) not in TIFF_SIGNATURES:
        return Planes((Plane(),))
    pages = all_pages(read_directories(file, num_bytes, where), where)
    told = read_description(pages)
    samples = num_grey_samples(pages[0])
    # Channels that the samples of a page hold have no pages of their own.
    channels = told.num_channels if told.num_channels > 1 else samples
    names = told.channels if len(told.channels) == channels else ()
    planes = (
        [Plane()]
        if len(pages) == 1
        else [Plane(page.offset, *place) for page, place in zip(pages, told.places, strict=True)]
    )
    return Planes(
        tuple(_with_times(planes, pages, told)),
        told.seconds,
        told.pixel_size_um,
        channels,
        names,
        samples if told.num_channels == 1 else 1,
        _printed_size(pages[0]),
    )


def _with_times(planes: list[Plane], pages: list[Directory], told: Told) -> list[Plane]:
    """When each plane was taken: as the description says, else by the interval, else by the date of its page."""
    dates = [iso_date(page.data(tag.DATE_TIME, 40).decode("ascii", "replace")) for page in pages]
    is_each_dated = len(set(dates)) > 1 and None not in dates
    found = []
    for plane, date in zip(planes, dates, strict=True):
        hours = None
        if plane.frame is not None and told.times is not None:
            seconds = told.times.get(plane.frame)
            hours = None if seconds is None else (seconds - told.times[min(told.times)]) / 3600
        elif plane.frame is not None and told.seconds is not None:
            hours = (plane.frame - 1) * told.seconds / 3600
        elif plane.frame is not None and is_each_dated:
            hours = _hours_between(min(filter(None, dates)), date)
        hours = hours if hours is not None and 0 <= hours < MAX_HOURS else None
        acquired = date if told.acquired is None and is_each_dated else later(told.acquired or dates[0], hours)
        found.append(plane._replace(hours=hours, acquired=acquired))
    return found


def _hours_between(first: str, then: str | None) -> float | None:
    try:
        return (datetime.fromisoformat(then or "") - datetime.fromisoformat(first)).total_seconds() / 3600
    except (TypeError, ValueError):  # one with a time zone, one without
        return None


def later(date: str | None, hours: float | None) -> str | None:
    """An ISO date some hours later; the date itself for none."""
    try:
        return (datetime.fromisoformat(date) + timedelta(hours=hours)).isoformat() if date and hours else date
    except OverflowError:  # the year 9999
        return None


def _printed_size(page: Directory) -> float | None:
    """The size of a pixel by the tags XResolution and ResolutionUnit, in micrometres."""
    density = rational(page, tag.X_RESOLUTION)
    unit = RESOLUTION_UNITS.get(page.number(tag.RESOLUTION_UNIT, 2))
    size = unit / density if unit and density else math.inf
    return size if OF_MICROSCOPES_UM[0] <= size <= OF_MICROSCOPES_UM[1] else None
