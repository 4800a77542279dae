"""Memory that a process shares with its workers, and the ring in it through which workers pass batches.

Workers may have been forked before the memory was made: a file without a name holds it, whose descriptor can be sent
to them (`WorkerPool.add_job`).
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class SharedMemory:
    """`num_bytes` bytes, initially zero. Pages that are never written take no memory. /dev/shm is not used.

    descriptor: an existing file with these bytes; this object closes it.
    """

    def __init__(self, num_bytes: int, descriptor: int | None = None) -> None:
        self.num_bytes = num_bytes
        self.descriptor = anonymous_file() if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, max(1, num_bytes))
        self.map = mmap.mmap(self.descriptor, max(1, num_bytes))

    def array(self, start: int, num_bytes: int) -> np.ndarray:
        """Return (num_bytes,) uint8 from byte `start`, a view of the memory, which lives as long as its views."""
        return np.frombuffer(self.map, np.uint8, num_bytes, start)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def anonymous_file() -> int:
    """Return the descriptor of an empty file in memory, or on disk if the system has no files in memory."""
    try:
        return os.memfd_create("glioma-dist")
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


@dataclass(frozen=True)
class BatchHandle:
    """A batch as a worker passes it on.

    shape: of the images, (B, channels, H, W). height: of the whole images, of which the batch may hold a strip.
    flat: masks and images in one piece, see `split_flat`; None where they lie at a place of a ring. num_planes: of each
    mask. digests: as of `Batch`.
    """

    shape: tuple[int, ...]
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    height: int
    flat: np.ndarray | None
    num_planes: int = 1
    digests: tuple[bytes, ...] = ()


class SharedMemoryRing:
    """Room for `num_places` batches of up to `place_bytes` bytes each (`flat_bytes`).

    A place is overwritten only after its batch is released; `Stream` takes care of that.
    """

    def __init__(self, num_places: int, place_bytes: int) -> None:
        self.num_places = num_places
        self.place_bytes = -(-place_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = SharedMemory(num_places * self.place_bytes)

    def flat(self, place: int, num_bytes: int) -> np.ndarray:
        """Return the first `num_bytes` bytes of a place, uint8, a view of the memory."""
        return self._memory.array(place * self.place_bytes, num_bytes)


class BatchRoom:
    """Room for a batch: at a place of a ring if it fits there, else in newly allocated memory.

    shape, flat: as of `BatchHandle`. images: (B, channels, H, W) and masks: (B, H, W) or (B, planes, H, W), uint8, to
    be written to.
    """

    def __init__(
        self, shape: tuple[int, ...], place: int | None, ring: SharedMemoryRing | None, num_planes: int = 1
    ) -> None:
        num_bytes = flat_bytes(shape, num_planes)
        fits = ring is not None and place is not None and num_bytes <= ring.place_bytes
        flat = ring.flat(place, num_bytes) if fits else np.empty(num_bytes, np.uint8)
        images, masks = split_flat(torch.from_numpy(flat), shape, num_planes)
        self.shape, self.images, self.masks = shape, images.numpy(), masks.numpy()
        self.flat = None if fits else flat


def write_batch(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], place: int | None, ring: SharedMemoryRing | None
) -> tuple[tuple[int, ...], np.ndarray | None]:
    """Put images of (channels, H, W) and masks of (H, W) or (planes, H, W), all uint8, into one piece, see `BatchRoom`.
    Returns `BatchHandle.shape` and `flat`."""
    num_planes = 1 if masks[0].ndim == 2 else len(masks[0])
    room = BatchRoom((len(images), *images[0].shape), place, ring, num_planes)
    np.stack(images, out=room.images)
    np.stack(masks, out=room.masks)
    return room.shape, room.flat


def flat_bytes(shape: Sequence[int], num_planes: int = 1) -> int:
    """Return the bytes of a batch's images, (B, channels, H, W) uint8, and masks of so many planes."""
    count, channels, height, width = shape
    return count * (channels + num_planes) * height * width


def split_flat(flat: Tensor, shape: Sequence[int], num_planes: int = 1) -> tuple[Tensor, Tensor]:
    """Images (B, channels, H, W) and masks, (B, H, W) or of several planes (B, planes, H, W), of a batch whose masks
    and then images lie in one piece. They are views of it."""
    count, channels, height, width = shape
    planes = (count, height, width) if num_planes == 1 else (count, num_planes, height, width)
    num_pixels = math.prod(planes)
    return flat[num_pixels:].view(count, channels, height, width), flat[:num_pixels].view(planes)
