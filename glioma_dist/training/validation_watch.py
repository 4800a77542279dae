"""What a validation tells besides its scores: how far it is, and whether the network predicts one value everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glioma_dist.limits import IGNORE
from glioma_dist.wording import short

LEAST_SHARE = 1 / 20
"""Of the cells' pixels, or of the background's: less of them predicted is nearly none."""


class ValidationWatch:
    """Of the validations of a run, on each process. `tell`, set on the first one, is told how many of how many images
    are done."""

    def __init__(self) -> None:
        self.tell: Callable[[int, int], None] = lambda done, total: None
        self._counts: tuple[float, ...] = (0.0, 0.0, 0.0)
        self._last: str | None = None

    def counted(self, counts: Sequence[float]) -> None:
        """Note a validation's `count_cells`, summed over all images and processes."""
        self._counts = tuple(counts)

    def judge(self, is_last: bool) -> str | None:
        """Return what to warn of: all masks predicted nearly empty or nearly full, in two validations in a row or in
        the last one of the run."""
        predicted, reference, known = self._counts
        kind = uniform_kind(*self._counts)
        has_lasted = kind is not None and kind in (self._last, kind if is_last else None)
        self._last = kind
        if kind is None or not has_lasted:
            return None
        cells, labelled = (f"{short(100 * count / known, 2)} %" for count in (predicted, reference))
        return (
            f"the predicted masks of the validation images are nearly {kind}: cells cover {cells} of them, and "
            f"{labelled} of the reference masks; if that stays so, check that the masks belong to the images "
            "(glioma-dist shards inspect --sheet sheet.png), or try another --lr, or --loss dice+bce"
        )


def count_cells(predicted: Tensor, reference: Tensor) -> Tensor:
    """Count the pixels predicted as cell, labelled as cell, and labelled at all. Counts of the parts of an image, and
    of several images, may be added.

    predicted, reference: (B, H, W), 0 for background; of the second, 255 is not labelled. Returns (3,) fp64.
    """
    known = reference != IGNORE
    counts = [(predicted.bool() & known).sum(), (reference.bool() & known).sum(), known.sum()]
    return torch.stack(counts).double()


def uniform_kind(predicted: float, reference: float, known: float) -> str | None:
    """Return "empty" or "full" where nearly all predicted pixels are 0 or 1 while those of the reference are not."""
    if predicted < LEAST_SHARE * reference:
        return "empty"
    if known - predicted < LEAST_SHARE * (known - reference):
        return "full"
    return None
