"""Example images of a validation, with the outlines of the reference mask and of the predicted one."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from glioma_dist.limits import IGNORE
from glioma_dist.scale.spatial_group import SpatialGroup

NUM_EXAMPLES = 3
MAX_SIDE = 1024
"""Longest side of an overlay in pixels."""
REFERENCE, PREDICTED = (90, 169, 230), (255, 140, 0)
"""RGB of the outlines: blue and orange, which people with colour blindness tell apart."""


class Overlays:
    """Collects the first images of a validation with what the network made of them. It changes no number.

    `are_wanted`, the same on all processes, is set when the run begins: whether anybody looks at them.
    """

    def __init__(self) -> None:
        self.are_wanted = False
        self._parts: list[np.ndarray] = []

    def begin(self) -> None:
        """A validation begins. All processes call it, so that each keeps as many images as the others."""
        self._parts = []

    def add(self, image: Tensor, reference: Tensor, predicted: Tensor, group: SpatialGroup) -> None:
        """Keep one image; the processes of a spatial group, which have its strips, call it together.

        image: uint8 (1, 1 or 3, rows of this process, W). reference, predicted: uint8 (1, rows of this process, W),
        class numbers, of which the overlay shows what is a cell.
        """
        if not self.are_wanted or group.dp_rank > 0 or len(self._parts) >= NUM_EXAMPLES:
            return
        cells = torch.stack([(reference > 0) & (reference != IGNORE), predicted > 0], dim=1).to(torch.uint8)
        whole = group.gather_strip(torch.cat([image, cells], dim=1))
        self._parts.append(whole[0].cpu().numpy())

    def drawing(self) -> Callable[[], dict[str, np.ndarray]]:
        """A function that draws this validation's overlays, in any thread and at any time: uint8 (H, W, 3) RGB by
        name."""
        parts = self._parts
        return lambda: {f"val/overlay_{number}": draw_overlay(part) for number, part in enumerate(parts, 1)}


def draw_overlay(part: np.ndarray) -> np.ndarray:
    """part: uint8 (1 or 3 channels of the image, reference mask, predicted mask; H, W), masks of 0 and 1.

    Returns uint8 (H, W, 3) RGB, scaled down to at most `MAX_SIDE`: the image with both outlines.
    """
    *channels, reference, predicted = part
    image = np.stack(channels * (3 // len(channels)), axis=2)
    factor = min(1.0, MAX_SIDE / max(image.shape[:2]))
    if factor < 1:
        size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        reference, predicted = (
            cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) for mask in (reference, predicted)
        )
    picture = np.ascontiguousarray(image)
    for mask, colour in ((reference, REFERENCE), (predicted, PREDICTED)):
        contours, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, 1)
    return picture
