"""Colours of the classes of cells, the same in all results."""

from __future__ import annotations

OUTLINE_COLOUR = (255, 200, 0)
"""Of cells where the network tells one class."""
CLASS_COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
"""Of the classes, in their order, then again from the first. Readers who see few colours can tell them apart (Okabe and
Ito 2008)."""


def class_colour(number: int, num_classes: int) -> tuple[int, int, int]:
    """Return the RGB colour of class `number` (from 1) of `num_classes`."""
    return OUTLINE_COLOUR if num_classes == 1 else CLASS_COLOURS[(number - 1) % len(CLASS_COLOURS)]
