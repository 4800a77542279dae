"""A batch of images with their masks, as tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

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
    digests: tuple[bytes, ...] = ()
    """SHA-256 of each sample's whole image and mask, its key and its seed (`sample_digest`), where asked for."""

    @classmethod
    def of(cls, handle: BatchHandle, flat: Tensor) -> Batch:
        """Make a batch of the pixels in `flat` (`split_flat`), on any device, without a copy."""
        images, masks = split_flat(flat, handle.shape, handle.num_planes)
        return cls(images, masks, torch.tensor(handle.seeds), handle.keys, handle.height, handle.digests)

    def to(self, device: torch.device) -> Batch:
        move = {"device": device, "non_blocking": True}
        return replace(self, images=self.images.to(**move), masks=self.masks.to(**move))

    def strip(self, rows: slice) -> Batch:
        """Only some rows of the images."""
        return replace(self, images=self.images[:, :, rows], masks=self.masks[..., rows, :])

    def pin_memory(self) -> Batch:
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())


def sample_digest(image: np.ndarray, mask: np.ndarray, key: str, seed: int) -> bytes:
    """SHA-256 of a sample as it is trained on, the same however the batch is shared by processes.

    image: (H, W) or (H, W, 3) uint8. mask: (H, W) or (planes, H, W) uint8.
    """
    digest = hashlib.sha256(f"{key}\0{seed}\0{image.shape}\0{mask.shape}\0".encode(errors="surrogateescape"))
    for array in (image, mask):
        digest.update(np.ascontiguousarray(array))
    return digest.digest()


def image_tensor(image: np.ndarray) -> Tensor:
    """(H, W) or (H, W, 3) uint8 to (1 or 3, H, W)."""
    return torch.from_numpy(channels_first(image))


def channels_first(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) to (1 or 3, H, W)."""
    return np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1))
