"""A batch of images with their masks, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glioma_dist.data.shared_memory_ring import BatchHandle, split_flat


@dataclass(frozen=True)
class Batch:
    """One training process's part of a batch: B samples."""

    images: Tensor
    """(B, 1 or 3, H, W) uint8; one channel where all are grey."""
    masks: Tensor
    """(B, H, W) uint8 of 0 and 1, or class numbers; IGNORE where nobody labelled. With a second target (B, 2, H, W):
    [:, 0] the mask, [:, 1] that target (targets.py)."""
    seeds: Tensor
    """(B,) int64, a seed for each sample at its position in the order."""
    keys: tuple[str, ...]
    height: int | None = None
    """Rows of the whole images; the batch may hold a strip of them."""

    @classmethod
    def of(cls, handle: BatchHandle, flat: Tensor) -> Batch:
        """Make a batch of the pixels in `flat` (`split_flat`), on any device, without a copy."""
        return cls(
            *split_flat(flat, handle.shape, handle.num_planes), torch.tensor(handle.seeds), handle.keys, handle.height
        )

    def to(self, device: torch.device) -> Batch:
        move = {"device": device, "non_blocking": True}
        return Batch(self.images.to(**move), self.masks.to(**move), self.seeds, self.keys, self.height)

    def strip(self, rows: slice) -> Batch:
        """Only some rows of the images."""
        return Batch(self.images[:, :, rows], self.masks[..., rows, :], self.seeds, self.keys, self.height)

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.masks.pin_memory(), self.seeds, self.keys, self.height)


def image_tensor(image: np.ndarray) -> Tensor:
    """(H, W) or (H, W, 3) uint8 to (1 or 3, H, W)."""
    return torch.from_numpy(channels_first(image))


def channels_first(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) to (1 or 3, H, W)."""
    return np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1))
