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
from glioma_dist.data.images.choice import ChannelError, Choice, choose_channel, choose_places, choose_planes
from glioma_dist.data.images.decoding import TIFF_SUFFIXES
from glioma_dist.data.images.microscope import format_of, planes_of
from glioma_dist.data.images.ome_zarr import OmeZarr, find_images, is_zarr, open_ome_zarr
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.images.tiff_planes import Plane, Planes, read_planes
from glioma_dist.data.images.worker import Wanted
from glioma_dist.data.remote_images import RemoteFile
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_read, open_plain
from glioma_dist.inference.images import unique_names
from glioma_dist.inference.segmented import ImageMetadata

MAX_CHUNKS = 10_000
"""Whose times tell whether a plane of an OME-Zarr has changed."""
NUM_REQUESTS = 8
"""At a time, where files at URLs are asked which planes they hold."""


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
        remote = iter(list(threads.map(lambda path: _pictures_of(path, choice, None), filter(_is_url, paths))))
    with ImageReader() as reader:  # whose process starts with the first file that needs it
        found = [next(remote) if _is_url(path) else _pictures_of(path, choice, reader) for path in paths]
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


def _pictures_of(path: Path | Url, choice: Choice, reader: ImageReader | None) -> list[Picture]:
    """The pictures of one file: at least one, with an error where the file cannot be read. reader: for local files."""
    plain = Picture(path, Wanted(str(path), any_kind=True), colour=choice.channel, stem=path.stem)
    try:
        if isinstance(path, Url):
            return _of_url(plain, choice)
        if path.is_dir() and is_zarr(path):
            return _of_zarr(plain, choice)
        with open_plain(path) as file:
            found = os.fstat(file.fileno())
            plain = replace(plain, source=(os.path.abspath(path), found.st_size, found.st_mtime_ns))
            if reader is not None and format_of(path) is not None:
                return _of_planes(plain, planes_of(reader.describe(path), str(path)), choice)
            return _of_planes(plain, read_planes(file, found.st_size, str(path)), choice)
    except InputError as error:
        return [replace(plain, error=error)]
    except OSError as error:
        return [replace(plain, error=cannot_read(path, error))]


def _of_url(plain: Picture, choice: Choice) -> list[Picture]:
    if plain.path.suffix.lower() == ".zarr":
        raise InputError(f"{plain.path}: an OME-Zarr at a URL is not read; copy the folder to this machine")
    if (kind := format_of(plain.path)) is not None:
        raise InputError(f"{plain.path}: {kind.name} at a URL is not read; copy the file to this machine")
    file = RemoteFile(Url(plain.path))
    plain = replace(plain, source=file.source)
    if plain.path.suffix.lower() not in TIFF_SUFFIXES or not file.num_bytes:
        return _of_planes(plain, Planes((Plane(),)), choice)
    return _of_planes(plain, read_planes(file, file.num_bytes, plain.path), choice)


def _of_planes(plain: Picture, planes: Planes, choice: Choice) -> list[Picture]:
    """The chosen ones of the planes of a TIFF or a microscope's file."""
    chosen, channel = choose_planes(planes, choice, str(plain.path))
    sample = channel - 1 if channel is not None and planes.num_samples > 1 else None
    found = []
    for plane in chosen:
        text = plane_name(plane.frame, plane.position, channel, plane.scene)
        size = planes.pixel_size_um or planes.printed_size_um if plane.place is None else plane.pixel_size_um
        metadata = ImageMetadata(size, plane.hours, plane.acquired or "", text)
        wanted = plain.wanted._replace(directory=plane.directory, sample=sample, label=text, microscope=plane.place)
        colour = choice.channel if channel is None else None
        found.append(replace(plain, wanted=wanted, metadata=metadata, colour=colour))
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
    channel = choose_channel(choice, image.size("c"), image.channels, where)
    times = choose_places(choice.times, "--time", image.size("t"), "times", where)
    pages = choose_places(choice.pages, "--page", image.size("z"), "pages", where)
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


def plane_name(frame: int | None, position: int | None, channel: int | None, scene: int | None = None) -> str:
    """Return the name of a plane, for example s004-t003-p002-c2, with the parts of which the file has several."""
    numbers = (("s", scene), ("t", frame), ("p", position))
    parts = (f"{letter}{number:03d}" for letter, number in numbers if number is not None)
    return "-".join([*parts, *([f"c{channel}"] if channel is not None else [])])
