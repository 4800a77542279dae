"""Pictures read for a prediction."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch

from glioma_dist.config.paths import Url
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.images.worker import Wanted
from glioma_dist.data.remote_images import fetched
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.evaluation.network import Contrast, Network
from glioma_dist.inference.large.memory import memory_limit
from glioma_dist.inference.large.picture import ArrayPicture, LazyPicture, MappedPicture, StretchedPicture, stretched
from glioma_dist.inference.large.reading import open_large
from glioma_dist.inference.pictures import Picture
from glioma_dist.inference.segmented import ImageMetadata

COLOURS = ("red", "green", "blue")


class ReadImage(NamedTuple):
    """A picture as the network gets it. pixels: uint8, (H, W) or (H, W, 3) RGB, its contrast stretched; of a picture
    that is too large for the memory rows can be sliced."""

    pixels: np.ndarray | StretchedPicture
    metadata: ImageMetadata


class PictureReader:
    """Reads pictures one after another; a context manager. A file at a URL is fetched once for all of its planes.

    say: prints a line. What is odd about how pictures are stored is said once of each kind.
    """

    def __init__(self, reader: ImageReader, say: Callable[[str], None] = print) -> None:
        self._reader, self._say = reader, say
        self._stack, self._path, self._local = ExitStack(), None, Path()
        self._remarks: dict[str, tuple[str, int]] = {}  # by kind: the first one, and how many there are

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, picture: Picture) -> np.ndarray:
        """Read the pixels of a picture: uint8 or uint16, (H, W) or (H, W, 3) RGB, and say what is odd about it. Raises
        InputError if it cannot be read."""
        pixels, remarks = self.decode(picture)
        self.tell(picture, remarks)
        return pixels

    def decode(self, picture: Picture) -> tuple[np.ndarray, list[str]]:
        """Read the pixels as `read` does. Return them, and what is odd about how they are stored."""
        wanted = self.wanted(picture)
        try:
            decoded = self._reader.read(wanted)
            return choose_colour(decoded.pixels, picture), decoded.remarks()
        except InputError as error:
            if isinstance(picture.path, Url):
                raise type(error)(str(error).replace(str(wanted.path), picture.path)) from error
            raise

    def read_large(self, picture: Picture, limit: int, folder: Path) -> LazyPicture | None:
        """Read a picture that takes more than `limit` bytes of memory, by rows, from a temporary file in `folder`.
        Return None if it is smaller. Raises InputError if its file cannot be fetched, or is damaged."""
        large = open_large(self.wanted(picture), str(picture.label), limit, folder)
        if large is None:
            return None
        self.tell(picture, large.remarks)
        return MappedPicture(ArrayPicture(large.pixels), lambda rows: choose_colour(rows, picture))

    def wanted(self, picture: Picture) -> Wanted:
        """Return the request for a picture of a local file; a file at a URL is fetched first. Raises InputError if that
        fails."""
        if picture.error is not None:
            raise picture.error
        if not isinstance(picture.path, Url):
            return picture.wanted
        if self._path != picture.path:
            self._stack.close()
            self._path = None
            self._local = self._stack.enter_context(fetched(picture.path))
            self._path = picture.path
        return picture.wanted._replace(path=self._local)

    def tell(self, picture: Picture, remarks: Sequence[str]) -> None:
        """Say what is odd about how a picture is stored, where no other picture had a remark of this kind."""
        for remark in remarks:
            # Figures are of one picture.
            kind = re.sub(r"-?[0-9][0-9.e+-]*", "0", remark)
            if kind not in self._remarks:
                self._say(f"{printable(picture.label)}: {remark}")
            first, number = self._remarks.get(kind, (remark, 0))
            self._remarks[kind] = first, number + 1

    def tell_remarks(self) -> None:
        """Say how many pictures have each kind of remark, where it is more than the one that it was said of."""
        for first, number in self._remarks.values():
            if number > 1:
                self._say(f"{number} images have a remark of this kind: {one_line(first, 200)}")


def choose_colour(pixels: np.ndarray, picture: Picture) -> np.ndarray:
    """Return the colour that the user chose, or the whole picture; for a file without channels.

    Raises InputError where it has no such channel.
    """
    if picture.colour is None:
        return pixels
    wanted = picture.colour.casefold()
    names = COLOURS if pixels.ndim == 3 else ("grey",)
    numbers = {str(number): number for number in range(1, len(names) + 1)} | {
        name: number for number, name in enumerate(names, 1)
    }
    if wanted not in numbers:
        has = "three colours (1 red, 2 green, 3 blue)" if pixels.ndim == 3 else "one channel"
        raise InputError(f"{picture.label}: no channel {one_line(picture.colour, 40)}; it has {has}")
    return np.ascontiguousarray(pixels[..., numbers[wanted] - 1]) if pixels.ndim == 3 else pixels


def read_together(
    reader: PictureReader,
    picture: Picture,
    network: Network,
    contrast: Contrast,
    folder: Path,
    memory: int | None = None,
) -> ReadImage:
    """Read a picture and stretch its contrast. If one of the processes that share it cannot read it, InputError is
    raised on all of them, because the others would wait for that one.

    memory: resident bytes that this process may take; None: what is free. folder: for the temporary file of a picture
    that is too large for that.
    """
    image, error = None, None
    try:
        large = reader.read_large(picture, memory_limit(memory), folder)
        if large is None:
            pixels = normalize_intensity(reader.read(picture), contrast)
        else:
            pixels = stretched(large, contrast, str(picture.label))
        image = ReadImage(pixels, picture.metadata)
    except InputError as found:
        error = found
    if network.spatial_group.size > 1:
        num_failed = network.spatial_group.all_reduce(torch.tensor([float(error is not None)], device=network.device))
        if error is None and num_failed.item():
            error = InputError(f"{picture.label}: another process of this launch cannot read it; its line says why")
    if image is None or error is not None:
        raise error or InputError(f"{picture.label}: cannot be read")
    return image
