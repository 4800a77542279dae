"""Zeiss's CZI, by the library pylibCZIrw. Tiles of a scene are put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.data.images.microscope import Scene
from glioma_dist.errors import InputError

KINDS = {"Gray8": "uint8", "Gray16": "uint16", "Gray32Float": "float32", "Bgr24": "uint8", "Bgr48": "uint16"}
SECONDS_IN_HOUR = 3600.0


class CziFile:
    """See `microscope.MicroscopeFile`."""

    def __init__(self, path: Path) -> None:
        from pylibCZIrw import czi

        self._path = path
        self._file = czi.CziReader(str(path))
        self._bounds: dict[str, tuple[int, int]] = dict(self._file.total_bounding_box_no_pyramid)
        scenes = self._file.scenes_bounding_rectangle_no_pyramid
        self._scenes = sorted(scenes.items()) or [(None, self._file.total_bounding_rectangle_no_pyramid)]
        self._pages = [axis for axis in self._bounds if axis not in ("T", "C", "X", "Y", "S", "M")]

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def scenes(self) -> list[Scene]:
        """Return its scenes."""
        kinds = set(self._file.pixel_types.values())
        if len(kinds) != 1 or not kinds <= KINDS.keys():
            told = ", ".join(sorted(map(str, kinds)))
            raise InputError(f"{self._path}: pixels of {told}; only one of {', '.join(KINDS)} in a file is read")
        kind = kinds.pop()
        image = _part(self._file.metadata, "ImageDocument", "Metadata", "Information", "Image")
        return [
            Scene(
                self._size("T"),
                self._size("C"),
                int(np.prod([self._size(axis) for axis in self._pages], dtype=int)),
                place.h,
                place.w,
                KINDS[kind],
                3 if kind.startswith("Bgr") else 1,
                self._channels(image),
                self._pixel_size(),
                _number(_part(image, "Dimensions", "T", "Positions", "Interval"), "Increment", SECONDS_IN_HOUR),
                _date(_part(image).get("AcquisitionDateAndTime")),
                by_rows=True,
            )
            for _, place in self._scenes
        ]

    def read(self, scene: int, time: int, channel: int, page: int, rows: slice) -> np.ndarray:
        """Return rows of a plane, of which no others are decoded than those of the tiles that hold them."""
        number, area = self._scenes[scene]
        places = np.unravel_index(page, [self._size(axis) for axis in self._pages]) if self._pages else ()
        wanted = {"T": time, "C": channel} | dict(zip(self._pages, map(int, places), strict=True))
        plane = {axis: place + self._bounds[axis][0] for axis, place in wanted.items() if axis in self._bounds}
        part = area.x, area.y + rows.start, area.w, rows.stop - rows.start
        found: list[int] = []
        whole = area.x, area.y, area.w, area.h
        self._file.enumerate_subblocks_subset(lambda index, _: bool(found.append(index)), plane, whole)
        if not found:  # which the library would read as black
            raise InputError(f"{self._path}: the plane {plane} is not in the file: never taken, or cut short")
        pixels = self._file.read(roi=part, plane=plane, scene=number)
        return (
            pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., ::-1])
        )  # of blue, green, red

    def _size(self, axis: str) -> int:
        first, after = self._bounds.get(axis, (0, 1))
        return after - first

    def _channels(self, image: Any) -> tuple[str, ...]:
        listed = _part(image, "Dimensions", "Channels").get("Channel")
        listed = listed if isinstance(listed, list) else [listed]
        return tuple(str(_part(each).get("@Name") or _part(each).get("@Id") or "") for each in listed)

    def _pixel_size(self) -> float | None:
        listed = _part(self._file.metadata, "ImageDocument", "Metadata", "Scaling", "Items").get("Distance")
        for each in listed if isinstance(listed, list) else [listed]:
            if _part(each).get("@Id") == "X":
                return _number(_part(each), "Value", 1e-6)  # metres
        return None


def _part(content: Any, *names: str) -> dict[str, Any]:
    """A part of the metadata; empty where they do not have it."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def _number(content: dict[str, Any], name: str, unit: float) -> float | None:
    try:
        return float(content[name]) / unit or None
    except (KeyError, TypeError, ValueError):
        return None


def _date(text: Any) -> str | None:
    return text[:19] if isinstance(text, str) and len(text) >= 19 else None
