"""Nikon's ND2, by the library nd2. Positions of the stage are scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.data.images.microscope import Scene
from glioma_dist.errors import InputError

OF_A_FRAME = ("C", "Y", "X", "S")
MS_IN_HOUR = 3.6e6


class Nd2File:
    """See `microscope.MicroscopeFile`."""

    def __init__(self, path: Path) -> None:
        import nd2

        self._file = nd2.ND2File(path)
        sizes = self._file.sizes
        self._loops = [(axis, count) for axis, count in sizes.items() if axis not in OF_A_FRAME]
        self._shape = tuple(sizes.get(axis, 1) for axis in OF_A_FRAME)
        self._pages = [count for axis, count in self._loops if axis not in ("T", "P")]
        if self._file.components_per_channel not in (1, 3):
            raise InputError(f"{path}: {self._file.components_per_channel} values a pixel and channel are not read")

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def scenes(self) -> list[Scene]:
        """Return the positions of the stage, all of the same size."""
        sizes, attributes = dict(self._loops), self._file.attributes
        channels, height, width, samples = self._shape
        scene = Scene(
            sizes.get("T", 1),
            channels,
            int(np.prod(self._pages, dtype=int)),
            height,
            width,
            self._file.dtype.name,
            samples,
            tuple(each.channel.name or "" for each in self._channels()),
            self._pixel_size(),
            self._hours(),
            by_rows=attributes.compressionType is None and not self._file.is_legacy,
        )
        return [scene] * sizes.get("P", 1)

    def read(self, scene: int, time: int, channel: int, page: int, rows: slice) -> np.ndarray:
        """Return rows of a plane; of an uncompressed file no others are read."""
        pages = iter(np.unravel_index(page, self._pages) if self._pages else ())
        place = [{"T": time, "P": scene}.get(axis) for axis, _ in self._loops]
        place = [next(pages) if each is None else each for each in place]
        counts = [count for _, count in self._loops]
        number = int(np.ravel_multi_index(place, counts)) if counts else 0
        frame = self._file.read_frame(number)
        # The library gives zeros for a frame that the file does not have. Those that it has are parts of the file.
        if frame.flags.writeable and not self._file.is_legacy and not frame.any():
            raise InputError(f"{self._file.path}: frame {number + 1} is not in the file: never taken, or cut short")
        pixels = frame.reshape(self._shape)[channel, rows]
        return np.array(pixels if self._shape[3] > 1 else pixels[..., 0])

    def _channels(self) -> list[Any]:
        try:
            return list(getattr(self._file.metadata, "channels", None) or ())
        except Exception:  # the library's, on metadata without a probe, for one; pixels can be read without them
            return []

    def _pixel_size(self) -> float | None:
        channels = self._channels()
        volume = channels[0].volume if channels else None
        return float(volume.axesCalibration[0]) if volume is not None and volume.axesCalibrated[0] else None

    def _hours(self) -> float | None:
        """From one time to the next: as planned, or, where the microscope did not wait, as it was on average."""
        for loop in self._file.experiment:
            parameters = getattr(loop, "parameters", None)
            periods = getattr(parameters, "periods", None) or [parameters]
            if "Time" in loop.type and len(periods) == 1:
                planned, found = getattr(periods[0], "periodMs", 0), getattr(periods[0], "periodDiff", None)
                return (planned or getattr(found, "avg", 0)) / MS_IN_HOUR or None
        return None
