"""Touching cells separated by a second output of the network, with a watershed."""

from __future__ import annotations

import numpy as np

from glioma_dist.errors import InputError

MARKER_LIMITS = {"boundary": 0.4, "distance": 0.5}
"""A pixel of the mask is part of a marker where its boundary is below, or its distance at least, this value.
docs/guides/touching_cells.md says how the first was chosen, on validation images; the second was not tuned."""
LEAST_MARKER_PIXELS = 20
"""Of a marker: smaller ones are left out, for they are gaps in a boundary more often than cells."""
MOST_SEPARATED_PIXELS = 2**26
"""Of an image whose cells are separated: 8192x8192. The watershed holds about 24 bytes a pixel."""


def separate(mask: np.ndarray, values: np.ndarray, target: str) -> np.ndarray:
    """Give each cell of a mask a number of its own, also where cells touch.

    Markers are connected areas of the mask away from predicted boundaries, or near the centres of predicted distances.
    A watershed grows them over the mask, lowest boundary or highest distance first. A connected component of the mask
    without a marker is one cell.

    Args:
        mask: (H, W), above 0 where there is a cell.
        values: float (H, W), the network's second output after the sigmoid, from 0 to 1.
        target: what it is, boundary or distance.

    Returns int32 (H, W): numbers from 1 in the order of the cells' first pixels, row by row; 0 where there is no cell.
    Raises InputError for an image of more than `MOST_SEPARATED_PIXELS`.

    Source: Meyer 1994, Topographic distance and watershed lines; markers from a boundary class as in Caicedo et al.
    2019, Nucleus segmentation across imaging experiments.
    """
    from scipy import ndimage
    from skimage.segmentation import watershed

    check_separable(*mask.shape)
    inside = np.asarray(mask) > 0
    limit = MARKER_LIMITS[target]
    is_marker = inside & ((values < limit) if target == "boundary" else (values >= limit))
    eight = np.ones((3, 3), bool)
    # Along edges only: a line of predicted boundary may be one pixel wide and cross corners.
    markers, num_markers = ndimage.label(is_marker)
    too_small = np.bincount(markers.ravel(), minlength=num_markers + 1) < LEAST_MARKER_PIXELS
    markers[too_small[markers]] = 0
    components, num_components = ndimage.label(inside, eight)
    has_marker = np.zeros(num_components + 1, bool)
    has_marker[components[markers > 0]] = True
    alone = inside & ~has_marker[components]
    markers[alone] = components[alone] + num_markers
    heights = values if target == "boundary" else -values
    return numbered(watershed(heights, markers, connectivity=eight, mask=inside))


def is_separable(height: int, width: int) -> bool:
    """Return whether an image is small enough for `separate`."""
    return height * width <= MOST_SEPARATED_PIXELS


def check_separable(
    height: int, width: int, instead: str = "--write mask overlay probability, for which no cell needs a number"
) -> None:
    """Raise InputError for an image that is too large for `separate`. instead: what else the user can do."""
    if not is_separable(height, width):
        raise InputError(
            f"{width}x{height} pixels: touching cells are separated in images of up to {MOST_SEPARATED_PIXELS} pixels; "
            f"cut it into fields, or {instead}"
        )


def numbered(labels: np.ndarray) -> np.ndarray:
    """Number the areas of a label image (H, W) from 1, in the order of their first pixels, row by row: int32."""
    numbers, first, places = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.where(numbers > 0, first, -1), kind="stable")
    new = np.empty(len(numbers), np.int32)
    new[order] = np.arange(len(numbers), dtype=np.int32) + (0 if numbers[0] == 0 else 1)
    return new[places].reshape(labels.shape)
