"""Batches from worker processes to their training process, through memory that both keep.

PyTorch's loader makes a new piece of shared memory for every batch, and both processes then get its pages from the
system one by one: up to 18 ms of processor time an image of 1472x1120, more than it takes to make (docs/log.md).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from glioma_dist.size import Size


@dataclass(frozen=True)
class BatchHandle:
    """What crosses in the ordinary way: where in the ring a batch lies, and the rest of it."""

    place: int
    channels: int
    seeds: tuple[int, ...]
    keys: tuple[str, ...]


class SharedMemoryRing:
    """Room for `num_places` batches of `count` images of `size`, shared by all processes forked after it was made.

    A place may be written again when the batch before was taken out. Memory that is never written takes none.
    """

    def __init__(self, num_places: int, count: int, size: Size) -> None:
        self.num_places = num_places
        self._shape = (count, size.height, size.width)
        self._num_pixels = count * size.height * size.width
        self._places = [mmap.mmap(-1, 4 * self._num_pixels) for _ in range(num_places)]

    def put(self, place: int, images: list[Tensor], masks: list[Tensor]) -> None:
        """Write a batch: images of (channels, H, W) and masks of (H, W), both uint8."""
        whole_images, whole_masks = self._views(place, len(images[0]))
        torch.stack(images, out=whole_images)
        torch.stack(masks, out=whole_masks)

    def take(self, place: int, channels: int) -> tuple[Tensor, Tensor]:
        """A copy of what `put` wrote: (count, channels, H, W) and (count, H, W), uint8."""
        images, masks = self._views(place, channels)
        return images.clone(), masks.clone()

    def _views(self, place: int, channels: int) -> tuple[Tensor, Tensor]:
        count, height, width = self._shape
        memory = torch.frombuffer(self._places[place], dtype=torch.uint8)
        images = memory[self._num_pixels : (1 + channels) * self._num_pixels]
        return images.view(count, channels, height, width), memory[: self._num_pixels].view(self._shape)
