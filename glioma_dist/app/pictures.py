"""The pictures that a page shows: read, segmented, and kept for as long as there is room."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glioma_dist.config import DataConfig
from glioma_dist.data.images.decoding import PICTURE_SUFFIXES
from glioma_dist.data.images.microscope import MICROSCOPE_SUFFIXES
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.sample import encode_image
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError
from glioma_dist.evaluation.maps import cell_map, channels_first
from glioma_dist.evaluation.network import Network
from glioma_dist.inference.pictures import find_first
from glioma_dist.inference.reading import PictureReader
from glioma_dist.inference.segmenting import segment
from glioma_dist.size import Size

THRESHOLDS = np.arange(1, 100) / 100
"""Those of the page's slider. A pixel's level is how many of them its probability reaches, so `level >= k` is exactly
the mask of threshold k / 100."""
MAX_SHOWN_PIXELS = 2**25
"""Of a picture: what a browser draws without delay."""
MAX_KEPT_BYTES = 2**29
"""Of all pictures that are kept. The oldest are forgotten."""


@dataclass(frozen=True)
class ShownPicture:
    """A segmented picture. The name is the uploaded file's."""

    name: str
    width: int
    height: int
    png: bytes
    """The picture with its contrast stretched."""
    levels: np.ndarray
    """uint8 (H, W), 0 to 99: how many of `THRESHOLDS` each pixel's probability reaches."""
    note: str
    """What a user should know about how the file was read; empty where nothing is odd."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return len(self.png) + self.levels.nbytes

    def mask_png(self, threshold: int) -> bytes:
        """Return the mask that `predict --threshold` gives at `threshold` / 100: a PNG of 0 and 255."""
        return encode_image((self.levels >= threshold).astype(np.uint8) * 255)


class Segmenter:
    """Segments uploaded files, one at a time, whoever asks."""

    def __init__(self, network: Network, data: DataConfig, input_size: Size | None, reader: ImageReader) -> None:
        self._network, self._contrast, self._reader = network, data.intensity_normalization, reader
        self._input_size = input_size or (data.size if data.transform == "resize" else None)
        self._lock = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether it is at work on a picture."""
        return self._lock.locked()

    def segment(self, path: Path, name: str) -> ShownPicture:
        """Read the file `path`, which the user calls `name`, and segment it.

        Raises InputError, naming the file as the user does, where it cannot be read or is too large.
        """
        try:
            with self._lock:
                return self._segment(path, name)
        except InputError as error:
            raise type(error)(str(error).replace(str(path), name)) from error

    def _segment(self, path: Path, name: str) -> ShownPicture:
        pixels, note = self._read(path)
        height, width = pixels.shape[:2]
        if width * height > MAX_SHOWN_PIXELS:
            raise InputError(f"{path}: has {width}x{height} pixels, more than this page shows; use glioma-dist predict")
        maps = channels_first(np.asarray(segment(pixels, self._network, self._input_size).maps))
        probabilities = cell_map(self._network.outputs, maps)
        levels = np.searchsorted(THRESHOLDS.astype(np.float32), probabilities, side="right").astype(np.uint8)
        return ShownPicture(name, width, height, encode_image(pixels), levels, note)

    def _read(self, path: Path) -> tuple[np.ndarray, str]:
        """The first picture of a file, with its contrast stretched; and notes on it."""
        if path.suffix.lower() not in (*PICTURE_SUFFIXES, *MICROSCOPE_SUFFIXES):  # which predict does not read, either
            raise InputError(f"{path}: not an image that can be read; drop a TIFF, PNG or JPEG")
        picture, notes = find_first(path)
        with PictureReader(self._reader) as reader:
            pixels, remarks = reader.decode(picture)
        return normalize_intensity(pixels, self._contrast), "; ".join([*notes, *remarks])


class KeptPictures:
    """Pictures by names that nobody can guess, the newest of them, within `MAX_KEPT_BYTES`."""

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pictures: OrderedDict[str, ShownPicture] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, picture: ShownPicture) -> str:
        """Keep a picture, the newest always, and forget the oldest. Returns its key."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._pictures[key] = picture
            while len(self._pictures) > 1 and self._num_bytes() > self._max_bytes:
                self._pictures.popitem(last=False)
        return key

    def find(self, key: str) -> ShownPicture | None:
        """Return the picture of a key; None if it is not kept."""
        with self._lock:
            return self._pictures.get(key)

    def _num_bytes(self) -> int:
        return sum(each.num_bytes for each in self._pictures.values())
