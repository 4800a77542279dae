"""Leica's LIF, by the library liffile. Each image of the file is a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from glioma_dist.data.images.microscope import Scene
from glioma_dist.errors import InputError

COLUMNS, TIME = "1", "4"
"""Values of DimID."""
SECONDS_IN_HOUR = 3600.0


class LifFile:
    """See `microscope.MicroscopeFile`."""

    def __init__(self, path: Path) -> None:
        import liffile

        self._file = liffile.LifFile(path)
        if self._file.type.name != "LIF":
            # XML that names other files, which would be read.
            raise InputError(f"{path}: is no LIF but a {self._file.type.name}; save it as LIF, or as TIFF")
        self._images = [image for image in self._file.images if not image.is_flim and _is_picture(image)]

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def scenes(self) -> list[Scene]:
        """Return the images that have rows and columns, and no line scans or lifetimes."""
        return [_scene(image) for image in self._images]

    def read(self, scene: int, time: int, channel: int, page: int, rows: slice) -> np.ndarray:
        """Return rows of a plane, whose other rows are read with them."""
        image = self._images[scene]
        others = _others(image)
        places = np.unravel_index(page, [image.sizes[axis] for axis in others]) if others else ()
        wanted = {"T": time, "C": channel} | dict(zip(others, map(int, places), strict=True))
        frame = image.frame(**{axis: place for axis, place in wanted.items() if axis in image.sizes})
        return frame[rows]


def _is_picture(image: Any) -> bool:
    return tuple(image.frames.frame_dims) in (("Y", "X"), ("Y", "X", "S")) and image.sizes.get("S", 3) == 3


def _others(image: Any) -> list[str]:
    return [axis for axis in image.sizes if axis not in ("T", "C", "Y", "X", "S")]


def _scene(image: Any) -> Scene:
    sizes = image.sizes
    description = image.xml_element.find("./Data/Image/ImageDescription")
    names = [] if description is None else [each.get("LUTName", "") for each in description.iter("ChannelDescription")]
    times, taken = sizes.get("T", 1), image.timestamps
    has_taken = taken is not None and len(taken) >= times
    seconds = _step(description, TIME)
    if seconds is None and times > 1 and has_taken:
        each = len(taken) // times
        seconds = float((taken[(times - 1) * each] - taken[0]) / np.timedelta64(1, "s")) / (times - 1)
    metres = _step(description, COLUMNS, "m")
    return Scene(
        times,
        sizes.get("C", 1),
        int(np.prod([sizes[axis] for axis in _others(image)], dtype=int)),
        sizes["Y"],
        sizes["X"],
        image.dtype.name,
        sizes.get("S", 1),
        () if "S" in sizes else tuple(names),
        metres * 1e6 if metres is not None else None,
        seconds / SECONDS_IN_HOUR if seconds is not None else None,
        str(taken[0])[:19] if has_taken and len(taken) else None,
    )


def _step(description: Element | None, dimension: str, unit: str = "s") -> float | None:
    """From one element of a dimension to the next: its length is that from the first to the last."""
    for each in () if description is None else description.iter("DimensionDescription"):
        number = int(each.get("NumberOfElements", "1"))
        if each.get("DimID") == dimension and each.get("Unit") == unit and number > 1:
            return abs(float(each.get("Length", "0"))) / (number - 1) or None
    return None
