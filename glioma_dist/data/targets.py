"""What the network learns beside the mask: the boundaries of cells, or how deep a pixel lies within its cell.

Labels are a mask, uint8 (H, W), or, where a second target is made of them, a mask and its numbers of cells as one
array, uint16 (H, W, 2), so that both go through every change of place together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from glioma_dist.data.sample import IGNORE, Sample
from glioma_dist.errors import InputError
from glioma_dist.limits import MAX_DISTANCE

BOUNDARY_PX = 2
"""How near to a pixel of another number a pixel of a boundary lies, along rows and columns."""
REMEDY = "convert the data again with --instances, or omit the second of --model.targets"


def check_instances(reader: object, targets: Sequence[str]) -> None:
    """Raise InputError if a second target is asked for, and the shards have no instances to make it of."""
    if len(targets) > 1 and not reader.has_instances:
        lacking = next(part for part in getattr(reader, "parts", (reader,)) if not part.has_instances)
        raise InputError(f"{lacking.source}: has no instances, which the target {targets[1]} is made of; {REMEDY}")


def labels_of(sample: Sample, targets: Sequence[str]) -> np.ndarray:
    """The labels of a sample for `targets` (`ModelConfig.targets`). Raises InputError where it has no instances."""
    if len(targets) == 1:
        return sample.mask
    if sample.instances is None:
        raise InputError(f"sample {sample.key}: has no instances, which {targets[1]} is made of; {REMEDY}")
    return cv2.merge([sample.mask.astype(np.uint16), sample.instances.astype(np.uint16, copy=False)])


def planes_of(labels: np.ndarray, targets: Sequence[str]) -> np.ndarray:
    """The masks of a batch from labels that have their final place and size: the mask itself, (H, W), or the mask and
    the second target, (2, H, W), uint8."""
    if labels.ndim == 2:
        return labels
    planes = np.empty((2, *labels.shape[:2]), np.uint8)
    planes[0] = labels[..., 0]
    planes[1] = SECOND_TARGETS[targets[1]](np.ascontiguousarray(labels[..., 1]))
    planes[1][planes[0] == IGNORE] = IGNORE
    return planes


def boundary_of(instances: np.ndarray) -> np.ndarray:
    """1 at pixels of cells within BOUNDARY_PX of a pixel of another number or of background, within a square; what lies
    beyond the image is no other number. instances: uint16 (H, W); returns uint8 (H, W)."""
    return (_differs(instances, BOUNDARY_PX) & (instances > 0)).view(np.uint8)


def distance_of(instances: np.ndarray) -> np.ndarray:
    """How deep each pixel lies within its cell, from 0 outside to MAX_DISTANCE where it is deepest.

    It is MAX_DISTANCE * d / D, where d is 1 plus the Euclidean distance in pixels to the nearest pixel at a cell's edge
    (one with another number among its 8 neighbours), and D the largest d of the same cell. instances: uint16 (H, W);
    returns uint8 (H, W)."""
    is_cell = instances > 0
    inner = is_cell & ~_differs(instances, 1)
    # Within a cell the nearest edge is always its own: that of another cell lies behind it.
    depth = cv2.distanceTransform(inner.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # From here on pixels of cells only, which are few.
    places = np.flatnonzero(is_cell)
    numbers, depths = instances.take(places), depth.take(places)
    if inner.all():  # no edge at all
        depths[:] = 0
    depths += 1
    deepest = np.zeros(int(instances.max(initial=0)) + 1, np.float32)
    np.maximum.at(deepest, numbers, depths)
    scale = np.divide(MAX_DISTANCE, deepest, out=np.zeros_like(deepest), where=deepest > 0)
    distances = np.zeros(instances.shape, np.uint8)
    distances.reshape(-1)[places] = np.rint(depths * scale.take(numbers))
    return distances


SECOND_TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"boundary": boundary_of, "distance": distance_of}


def _differs(instances: np.ndarray, reach_px: int) -> np.ndarray:
    """Whether a square of so many pixels to each side holds two numbers: bool (H, W)."""
    square = np.ones((2 * reach_px + 1, 2 * reach_px + 1), np.uint8)
    return cv2.dilate(instances, square) != cv2.erode(instances, square)
