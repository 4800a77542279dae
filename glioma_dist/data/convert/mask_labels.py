"""From a mask's values to classes, ignored pixels and a number for each cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glioma_dist.data.convert.labelling import Labelling
from glioma_dist.data.images.labels import is_binary, number_regions
from glioma_dist.data.sample import IGNORE
from glioma_dist.errors import InputError, one_line
from glioma_dist.limits import MAX_INSTANCES


class MaskLabels(NamedTuple):
    """mask: uint8 (H, W), see `Sample`. instances: uint16 (H, W), or None if they are not asked for."""

    mask: np.ndarray
    instances: np.ndarray | None
    num_cells: int


def label_mask(values: np.ndarray, labelling: Labelling) -> MaskLabels:
    """What `labelling` makes of a mask's values, uint16 (H, W).

    Cells: with classes the regions (8-connected) of each; without, different values above 0, or, where the mask has one
    value, regions. Raises InputError for a value that no class has.
    """
    ignored = np.zeros(values.shape, bool) if labelling.ignored_value is None else values == labelling.ignored_value
    if labelling.classes:
        mask = _classes_of(np.where(ignored, 0, values), labelling)
        numbers = _regions(mask, len(labelling.classes))
    else:
        mask = ((values > 0) & ~ignored).astype(np.uint8)
        numbers = number_regions(mask) if is_binary(values * mask) else values * mask
    num_cells = len(np.setdiff1d(numbers, 0))
    if labelling.instances and num_cells > MAX_INSTANCES:
        raise InputError(f"has {num_cells} cells, and {MAX_INSTANCES} can have a number; cut it into smaller ones")
    mask[ignored] = IGNORE
    return MaskLabels(mask, numbers.astype(np.uint16) if labelling.instances else None, num_cells)


def _classes_of(values: np.ndarray, labelling: Labelling) -> np.ndarray:
    """The class number of each pixel, 0 for background."""
    table = np.full(MAX_INSTANCES + 1, IGNORE, np.uint8)
    table[0] = 0
    table[list(labelling.values)] = range(1, len(labelling.values) + 1)
    mask = table.take(values)
    if mask.max(initial=0) == IGNORE:
        others = np.unique(values[mask == IGNORE]).tolist()
        told = one_line(", ".join(map(str, others[:5])) + (" and more" if len(others) > 5 else ""))
        raise InputError(
            f"has the value {told}, which is no class; name it in --classes, or ignore it by --ignore-value"
        )
    return mask


def _regions(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """A number for each region of each class, int32 (H, W)."""
    numbers, first = np.zeros(mask.shape, np.int32), 0
    for number in range(1, num_classes + 1):
        regions = number_regions(mask == number)
        numbers += np.where(regions > 0, regions + first, 0)
        first += int(regions.max(initial=0))
    return numbers
