"""The pictures of the files that a user names: each plane of a stack, chosen by time, page and channel."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

from glioma_dist.config.paths import Url
from glioma_dist.config.places import Places
from glioma_dist.data.images.decoding import TIFF_SUFFIXES
from glioma_dist.data.images.ome_zarr import OmeZarr, find_images, is_zarr, open_ome_zarr
from glioma_dist.data.images.tiff_planes import Plane, Planes, read_planes
from glioma_dist.data.images.worker import Wanted
from glioma_dist.data.remote_images import RemoteFile
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import cannot_read, open_plain
from glioma_dist.inference.images import unique_names
from glioma_dist.inference.segmented import ImageMetadata

MAX_PLANES = 100_000
"""Of one file. Metadata can promise any number."""
MAX_CHUNKS = 10_000
"""Whose times tell whether a plane of an OME-Zarr has changed."""
NUM_REQUESTS = 8
"""At a time, where files at URLs are asked which planes they hold."""


@dataclass(frozen=True)
class Choice:
    """What the user wants of each file. channel: a number from 1, or a name; None: the only one."""

    channel: str | None = None
    times: Places = field(default_factory=Places)
    pages: Places = field(default_factory=Places)


class ChannelError(InputError):
    """A file has several channels, and the user has not said which one to take. channels: how many, and their names."""

    channels = ""


@dataclass(frozen=True)
class Picture:
    """One picture to segment. wanted: how it is asked for, of the file or of a copy of it.

    colour: the channel that the user wants of a file that has only one, or colours. source: what changes where the file
    does. error: why its file cannot be read. name: of its results.
    """

    path: Path | Url
    wanted: Wanted
    metadata: ImageMetadata = field(default_factory=ImageMetadata)
    colour: str | None = None
    source: tuple[Any, ...] = ()
    error: InputError | None = None
    stem: str = ""
    name: str = ""

    @property
    def label(self) -> Path | Url:
        """The picture as messages name it: the file, and its plane in brackets."""
        plane = self.metadata.plane
        return type(self.path)(f"{self.path} ({plane})") if plane else self.path


def find_pictures(paths: Sequence[Path | Url], choice: Choice) -> list[Picture]:
    """Find the pictures of files, in their order, and name their results. Pixels are not read.

    A file that cannot be read is one picture with an error. Raises ChannelError where all files have several channels,
    and the user has chosen none.
    """
    with ThreadPoolExecutor(NUM_REQUESTS) as threads:
        remote = iter(list(threads.map(lambda path: _pictures_of(path, choice), filter(_is_url, paths))))
    found = [next(remote) if _is_url(path) else _pictures_of(path, choice) for path in paths]
    errors = [picture.error for pictures in found for picture in pictures]
    if errors and all(isinstance(error, ChannelError) for error in errors):
        raise errors[0]
    candidates = []
    for number, pictures in enumerate(found):
        endings = [f"-{each.metadata.plane}" if each.metadata.plane else "" for each in pictures]
        candidates.append((pictures[0].path, number, [each.stem for each in pictures], endings))
    names = iter(unique_names(candidates))
    return [replace(picture, name=next(names)) for pictures in found for picture in pictures]


def find_first(path: Path) -> tuple[Picture, list[str]]:
    """The first picture of a file, of its first channel, for those who want one; with an error where it cannot be read.
    And what else the file holds, in words for the user."""
    notes = []
    try:
        found = find_pictures([path], Choice())
    except ChannelError as error:
        found = find_pictures([path], Choice("1"))
        notes.append(f"{error.channels}: the first is taken; glioma-dist predict --channel takes another")
    if len(found) > 1:
        notes.insert(0, f"a stack of {len(found)} pages: the first is taken; glioma-dist predict takes them all")
    return found[0], notes


def _is_url(path: Path | Url) -> bool:
    return isinstance(path, Url)


def _pictures_of(path: Path | Url, choice: Choice) -> list[Picture]:
    """The pictures of one file: at least one, with an error where the file cannot be read."""
    plain = Picture(path, Wanted(str(path), any_kind=True), colour=choice.channel, stem=path.stem)
    try:
        if isinstance(path, Url):
            return _of_url(plain, choice)
        if path.is_dir() and is_zarr(path):
            return _of_zarr(plain, choice)
        with open_plain(path) as file:
            found = os.fstat(file.fileno())
            plain = replace(plain, source=(os.path.abspath(path), found.st_size, found.st_mtime_ns))
            return _of_planes(plain, read_planes(file, found.st_size, str(path)), choice)
    except InputError as error:
        return [replace(plain, error=error)]
    except OSError as error:
        return [replace(plain, error=cannot_read(path, error))]


def _of_url(plain: Picture, choice: Choice) -> list[Picture]:
    if plain.path.suffix.lower() == ".zarr":
        raise InputError(f"{plain.path}: an OME-Zarr at a URL is not read; copy the folder to this machine")
    file = RemoteFile(Url(plain.path))
    plain = replace(plain, source=file.source)
    if plain.path.suffix.lower() not in TIFF_SUFFIXES or not file.num_bytes:
        return _of_planes(plain, Planes((Plane(),)), choice)
    return _of_planes(plain, read_planes(file, file.num_bytes, plain.path), choice)


def _of_planes(plain: Picture, planes: Planes, choice: Choice) -> list[Picture]:
    """The chosen ones of a TIFF's planes."""
    where = str(plain.path)
    channel = _choose_channel(choice, planes.num_channels, planes.channels, where)
    frames, positions = (
        max(each or 1 for each in numbers) for numbers in zip(*(plane[1:3] for plane in planes.planes), strict=True)
    )
    times = _choose(choice.times, "--time", frames, "times", where)
    pages = _choose(choice.pages, "--page", positions, "pages", where)
    sample = channel - 1 if channel is not None and planes.num_samples > 1 else None
    found = []
    for plane in planes.planes:
        is_channel = sample is not None or channel is None or plane.channel == channel
        if (plane.frame or 1) in times and (plane.position or 1) in pages and is_channel:
            text = plane_name(plane.frame, plane.position, channel)
            size = planes.pixel_size_um or planes.printed_size_um
            metadata = ImageMetadata(size, plane.hours, plane.acquired or "", text)
            wanted = plain.wanted._replace(directory=plane.directory, sample=sample, label=text)
            colour = choice.channel if channel is None else None
            found.append(replace(plain, wanted=wanted, metadata=metadata, colour=colour))
    if not found:
        raise InputError(f"{where}: has no plane of the chosen --channel, --time and --page")
    return found


def _of_zarr(plain: Picture, choice: Choice) -> list[Picture]:
    path = plain.path
    stem = path.name[: -len(".zarr")] if path.name.lower().endswith(".zarr") else path.name
    stem = stem[: -len(".ome")] if stem.lower().endswith(".ome") else stem
    found = []
    for group in find_images(path):
        image = open_ome_zarr(path, group)
        named = replace(plain, stem="-".join([stem, *group.split("/")]) if group else stem)
        found += _of_zarr_image(replace(named, path=path / group), path, group, image, choice)
    if not found:
        raise InputError(f"{path}: an OME-Zarr without an image")
    return found


def _of_zarr_image(plain: Picture, root: Path, group: str, image: OmeZarr, choice: Choice) -> list[Picture]:
    where = str(plain.path)
    channel = _choose_channel(choice, image.size("c"), image.channels, where)
    times = _choose(choice.times, "--time", image.size("t"), "times", where)
    pages = _choose(choice.pages, "--page", image.size("z"), "pages", where)
    found = []
    for time, page in product(times, pages):
        text = plane_name(time if image.size("t") > 1 else None, page if image.size("z") > 1 else None, channel)
        hours = (time - 1) * image.hours if image.hours is not None and image.size("t") > 1 else None
        indices = (time - 1, (channel or 1) - 1, page - 1)
        found.append(
            replace(
                plain,
                wanted=Wanted(root, any_kind=True, label=text, zarr=(group, *indices)),
                metadata=ImageMetadata(image.pixel_size_um, hours, plane=text),
                colour=choice.channel if channel is None else None,
                source=_source_of_zarr(image, indices),
            )
        )
    return found


def _source_of_zarr(image: OmeZarr, indices: tuple[int, int, int]) -> tuple[Any, ...]:
    """What changes where a plane does: the times and sizes of its chunks."""
    told: list[Any] = [image.shape, str(image.array.dtype)]
    for path in islice(image.array.chunk_files(image.selection(*indices)), MAX_CHUNKS):
        try:
            found = os.stat(path)
            told.append((found.st_size, found.st_mtime_ns))
        except OSError:
            told.append(None)
    return (os.path.abspath(image.where), *indices, hashlib.sha256(json.dumps(told).encode()).hexdigest())


def _choose_channel(choice: Choice, count: int, names: Sequence[str], where: str) -> int | None:
    """The number of the chosen channel, from 1; None where there is one, which may have colours."""
    if count == 1:
        return None
    listed = one_line(", ".join(f"{number} {name}".strip() for number, name in _numbered(count, names)), 200)
    if choice.channel is None:
        error = ChannelError(f"{where}: {count} channels ({listed}); choose one by number or name: --channel 1")
        error.channels = f"{count} channels ({listed})"
        raise error
    by_name = [number for number, name in _numbered(count, names) if name.casefold() == choice.channel.casefold()]
    if len(by_name) == 1:
        return by_name[0]
    if choice.channel.isdecimal() and 1 <= int(choice.channel[:9]) <= count:
        return int(choice.channel)
    raise InputError(f"{where}: no channel {one_line(choice.channel, 40)} among its {count} ({listed})")


def _numbered(count: int, names: Sequence[str]) -> list[tuple[int, str]]:
    return [(number + 1, names[number] if names else "") for number in range(min(count, 100))]


def _choose(places: Places, flag: str, count: int, what: str, where: str) -> range:
    found = places.among(count)
    if not found:
        raise InputError(f"{where}: {flag} means none of its {count} {what if count > 1 else what[:-1]}")
    if len(found) > MAX_PLANES:
        raise InputError(f"{where}: {len(found)} {what}, more than {MAX_PLANES}; choose some of them by {flag}")
    return found


def plane_name(frame: int | None, position: int | None, channel: int | None) -> str:
    """Return the name of a plane, for example t003-p002-c2, with the parts of which the file has several."""
    parts = (f"{letter}{number:03d}" for letter, number in (("t", frame), ("p", position)) if number is not None)
    return "-".join([*parts, *([f"c{channel}"] if channel is not None else [])])
