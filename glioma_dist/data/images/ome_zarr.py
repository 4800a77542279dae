"""OME-Zarr 0.1 to 0.5: which images a folder holds, what their metadata say, and regions of their full resolution.

Metadata are read here without a library; pixels by zarr (extra `formats`), after `zarr_arrays` has checked what it is
given. `https://ngff.openmicroscopy.org` describes the format.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.data.images.limits import COPY_AGAIN, check_size, credible_pixel_size
from glioma_dist.data.images.numbers import SPARE_TIMES, to_16_bit
from glioma_dist.data.images.zarr_arrays import ZarrArray, check_inside, read_array, read_attributes
from glioma_dist.errors import InputError, one_line
from glioma_dist.extras import require

SUFFIX = ".zarr"
AXES = "tczyx"
LENGTHS_UM = {"angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4}
TIMES_S = {"millisecond": 1e-3, "second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
MAX_IMAGES = 20_000
"""Of a plate or a collection."""


@dataclass(frozen=True)
class OmeZarr:
    """An image of an OME-Zarr at full resolution. axes: one letter for each size in `shape`, of "tczyx" in this order,
    the last two "yx". channels: names, none where they are not told. hours: from one frame to the next."""

    where: str
    array: ZarrArray
    axes: str
    pixel_size_um: float | None = None
    channels: tuple[str, ...] = ()
    hours: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def times_h(self) -> tuple[float, ...] | None:
        """Hours of each frame since the first."""
        return None if self.hours is None else tuple(frame * self.hours for frame in range(self.size("t")))

    def size(self, axis: str) -> int:
        """Along an axis; 1 where the image does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def selection(
        self, t: int, c: int, z: int, rows: slice | None = None, columns: slice | None = None
    ) -> tuple[slice, ...]:
        """The part of the array that holds a region of one plane; indices from 0, slices of step 1."""
        wanted = {"t": slice(t, t + 1), "c": slice(c, c + 1), "z": slice(z, z + 1)}
        for axis, part in (("y", rows), ("x", columns)):
            start, stop, _ = (part or slice(None)).indices(self.size(axis))
            wanted[axis] = slice(start, stop)
        return tuple(wanted[axis] for axis in self.axes)

    def read(
        self, t: int = 0, c: int = 0, z: int = 0, rows: slice | None = None, columns: slice | None = None
    ) -> np.ndarray:
        """Pixels of a region of one plane, (rows, columns), in the array's own kind of numbers.

        Chunks that are not there are 0; `check_chunks` counts them. Raises InputError where chunks cannot be decoded.
        """
        require("formats", self.where, ("zarr",))
        import zarr
        from zarr.storage import LocalStore

        selection = self.selection(t, c, z, rows, columns)
        self.array.check_chunks(selection, self.where)
        try:
            # One chunk at a time: each may be as large as an image.
            with zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1}):
                array = zarr.open_array(
                    LocalStore(self.array.root, read_only=True),
                    path=self.array.path,
                    mode="r",
                    zarr_format=self.array.zarr_format,
                )
                found = np.asarray(array[selection])
        except MemoryError:
            raise
        except Exception as error:  # of whatever codec, and of zarr's own
            raise InputError(
                f"{self.where}: its chunks cannot be decoded ({one_line(error, 160)}): they are damaged; {COPY_AGAIN}"
            ) from None
        shape = tuple(part.stop - part.start for part in selection)
        if found.shape != shape:
            raise InputError(f"{self.where}: damaged Zarr: {found.shape} values where {shape} are asked for")
        return found.reshape(shape[-2:]).astype(self.array.dtype.newbyteorder("="), copy=False)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr: by its name, or by what lies in it."""
    return path.name.lower().endswith(SUFFIX) or any(
        (path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")
    )


def find_images(path: Path) -> list[str]:
    """The images of an OME-Zarr, each as a path within it: "" for the folder itself, else those of a plate's wells or
    of a collection (bioformats2raw). Raises InputError where there is none."""
    where = str(path)
    attributes, _ = read_attributes(path, "", where)
    if "multiscales" in attributes:
        return [""]
    if "plate" in attributes:
        found = []
        for well in _paths(attributes["plate"], "wells", where):
            check_inside(path, well, where)
            inner, _ = read_attributes(path, well, f"{where}: well {well}")
            found += [f"{well}/{image}" for image in _paths(inner.get("well"), "images", where)]
            if len(found) > MAX_IMAGES:
                raise InputError(f"{where}: a plate of more than {MAX_IMAGES} images; cut it into smaller ones")
        return found
    if "bioformats2raw.layout" in attributes:
        inner, _ = read_attributes(path, "OME", where) if (path / "OME").is_dir() else ({}, 0)
        series = inner.get("series")
        if isinstance(series, list) and all(isinstance(each, str) for each in series):
            return series[:MAX_IMAGES]
        number = 0
        while number < MAX_IMAGES and (path / str(number)).is_dir():
            number += 1
        return [str(each) for each in range(number)]
    raise InputError(f"{where}: a Zarr without an image of OME-Zarr (no multiscales, plate or series in its metadata)")


def open_ome_zarr(path: Path, group: str = "") -> OmeZarr:
    """An image of an OME-Zarr, of `find_images`. Its pixels are not looked at.

    Raises InputError where its metadata are missing, damaged, or describe no planes of rows and columns.
    """
    where = str(path / group)
    check_inside(path, group, where)
    attributes, zarr_format = read_attributes(path, group, where)
    try:
        image = attributes["multiscales"][0]
        level = image["datasets"][0]
        inner = level["path"]
        if not isinstance(inner, str):
            raise TypeError("the path of its first level")
        array = read_array(path, f"{group}/{inner}" if group else inner, zarr_format, where)
        axes = _axes(image, len(array.shape), where)
        scale = _scale(image, level, len(axes))
        units = {axis["name"]: str(axis.get("unit")) for axis in image.get("axes") or () if isinstance(axis, dict)}
        by_axis = dict(zip(axes, scale, strict=True))
        size = by_axis["x"] * LENGTHS_UM.get(units.get("x", ""), math.nan)
        hours = by_axis.get("t", math.nan) * TIMES_S.get(units.get("t", ""), math.nan) / 3600
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{where}: damaged OME-Zarr: its metadata describe no image ({one_line(repr(error), 80)}); {COPY_AGAIN}"
        ) from None
    names = _names(attributes)
    channels = array.shape[axes.index("c")] if "c" in axes else 1
    return OmeZarr(
        where,
        array,
        axes,
        credible_pixel_size(size),
        names if len(names) == channels else (),
        hours if 0 < hours < 1e6 else None,
    )


def decode_zarr_plane(
    path: Path, group: str, indices: tuple[int, int, int], where: str, reserve: Callable[[int], None]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """One plane, (H, W) uint8 or uint16, and notes; indices of time, channel and depth from 0. Raises InputError.

    reserve: see `decoding.decode_file`.
    """
    image = open_ome_zarr(path, group)
    if any(number >= image.size(axis) for axis, number in zip("tcz", indices, strict=True)):
        raise InputError(f"{where}: has no such plane any more: it has changed since the command began")
    height, width = image.shape[-2:]
    num_bytes = check_size(width, height, where, 1, image.array.dtype.itemsize)
    missing, number = image.array.check_chunks(image.selection(*indices), where)
    if missing == number:
        raise InputError(f"{where}: none of its {number} chunks are there: not taken yet, or lost; {COPY_AGAIN}")
    reserve(SPARE_TIMES * num_bytes + image.array.chunk_bytes)
    pixels, notes = to_16_bit(image.read(*indices), where)
    if missing:
        notes = (*notes, f"{missing} of {number} chunks are not there, and read as 0")
    return pixels, notes


def _paths(content: Any, key: str, where: str) -> list[str]:
    listed = content.get(key) if isinstance(content, dict) else None
    found = [each.get("path") for each in listed or () if isinstance(each, dict)] if isinstance(listed, list) else []
    if not found or not all(isinstance(each, str) and each for each in found):
        raise InputError(f"{where}: damaged OME-Zarr: its metadata list no {key}; {COPY_AGAIN}")
    return found


def _axes(image: dict[str, Any], number: int, where: str) -> str:
    """Before 0.3 there are always five, and in 0.3 they are names only."""
    listed = image.get("axes") or [{"name": name} for name in AXES]
    names = [axis if isinstance(axis, str) else axis["name"] for axis in listed]
    axes = "".join(name if isinstance(name, str) and len(name) == 1 else "?" for name in names).lower()
    in_order = "".join(axis for axis in AXES if axis in axes)
    if axes != in_order or not axes.endswith("yx") or len(axes) != number:
        said = one_line(", ".join(map(str, names)), 60)
        raise InputError(f"{where}: its axes are {said}; only t, c, z, y, x in this order are read; save it so")
    return axes


def _scale(image: dict[str, Any], level: dict[str, Any], number: int) -> list[float]:
    """Along each axis, of the first level: its own scale times that of all levels."""
    found = [1.0] * number
    for transformations in (level.get("coordinateTransformations"), image.get("coordinateTransformations")):
        for each in transformations or ():
            if each.get("type") == "scale":
                found = [a * float(b) for a, b in zip(found, each["scale"], strict=True)]
    return found


def _names(attributes: dict[str, Any]) -> tuple[str, ...]:
    omero = attributes.get("omero")
    listed = omero.get("channels") if isinstance(omero, dict) else None
    names = [each.get("label") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return tuple(names) if names and all(isinstance(name, str) and name for name in names) else ()
