"""What a network says of each pixel: probabilities of its classes, and its second output.

Maps are one array, channels first: the probability to belong to a cell, or those of all K classes with background as
the first; and then the second output, if the network has one. The functions take numpy arrays and tensors alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from glioma_dist.model.outputs import Outputs

ONE_CLASS = Outputs()
"""The outputs of a network that tells cells from background, and no more."""


def maps_of(outputs: Outputs, logits: Tensor) -> Tensor:
    """Turn logits (B, C, H, W) into maps (B, C, H, W), fp32 or wider: softmax over the classes, sigmoid elsewhere."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    mask = outputs.mask_logits(logits)
    mask = mask.softmax(1) if outputs.num_mask_channels > 1 else mask.sigmoid()
    target = outputs.target_logits(logits)
    return mask if target is None else torch.cat([mask, target[:, None].sigmoid()], 1)


def cell_map(outputs: Outputs, maps: Any) -> Any:
    """Return the probability of each pixel to belong to a cell, (H, W), of maps (C, H, W): with K classes, 1 minus that
    of background."""
    return 1 - maps[0] if outputs.num_mask_channels > 1 else maps[0]


def class_map(outputs: Outputs, maps: Any, threshold: float) -> Any:
    """Return the class of each pixel, uint8 (H, W), of maps (C, H, W).

    0 is background: where the probability to belong to a cell is below `threshold`. Elsewhere it is the most probable
    of the other classes, of those that are equal the first.
    """
    is_cell = cell_map(outputs, maps) >= threshold
    if outputs.num_mask_channels == 1:
        return _as_bytes(is_cell)
    classes = maps[1 : outputs.num_mask_channels].argmax(0) + 1
    return _as_bytes(classes * is_cell)


def target_map(outputs: Outputs, maps: Any) -> Any:
    """Return the second output, (H, W), of maps (C, H, W); None where the network has none."""
    return maps[-1] if outputs.target is not None else None


def _as_bytes(numbers: Any) -> Any:
    return numbers.to(torch.uint8) if isinstance(numbers, Tensor) else numbers.astype(np.uint8)


def by_rows(maps: Tensor) -> np.ndarray:
    """Return maps (C, H, W) so that rows can be sliced: (H, W) where there is one channel, else (H, C, W)."""
    return maps[0].cpu().numpy() if len(maps) == 1 else maps.transpose(0, 1).contiguous().cpu().numpy()


def channels_first(rows: np.ndarray) -> np.ndarray:
    """Undo `by_rows`: (C, rows, W)."""
    return rows[None] if rows.ndim == 2 else rows.swapaxes(0, 1)
