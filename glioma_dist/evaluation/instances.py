"""Found cells against true cells: counts, average precision as COCO defines it, and F1.

Average precision (AP) equals that of pycocotools' `COCOeval` for one category, masks, all areas and any number of cells
an image (Lin et al. 2014, arXiv 1405.0312). Here cells are label images, in which no two overlap: their IoU comes from
one pass over the pixels, and not from a comparison of each pair of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's: 0.5, 0.55, ..., 0.95."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""At which precision is read."""


@dataclass(frozen=True)
class MatchedCells:
    """The cells that were found in an image, and which of them match a true one."""

    scores: np.ndarray
    """fp64 (N,), of each found cell, the highest first."""
    is_match: np.ndarray
    """bool (T, N): whether it matches a true cell, at each of the T IoU thresholds."""
    num_true: int
    """Cells of the reference."""

    @property
    def num_found(self) -> int:
        """Return how many cells were found."""
        return len(self.scores)


@dataclass(frozen=True)
class InstanceScore:
    """Scores of found cells over several images."""

    num_true: int
    """Cells of the references."""
    num_found: int
    """Cells that were found."""
    ap: float | None
    """Average precision, the mean over IoU 0.5 to 0.95, from 0 to 1. None where the references have no cell."""
    ap_50: float | None
    """The same at IoU 0.5."""
    ap_75: float | None
    """The same at IoU 0.75."""
    f1_50: float | None
    """2 TP / (2 TP + FP + FN) at IoU 0.5, all images together. None where there is no cell, true or found."""
    mean_count_error: float
    """Mean over the images of |found - true|, in cells."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a JSON file holds."""
        return dict(vars(self))


def match_cells(
    found: np.ndarray, scores: np.ndarray, reference: np.ndarray, thresholds: np.ndarray = IOU_THRESHOLDS
) -> MatchedCells:
    """Match the found cells of an image to the true ones, as COCO does.

    At each threshold the found cells take their turn, the highest score first. Each takes the true cell with the
    highest IoU of those that are left, if that is at least the threshold.

    Args:
        found, reference: (H, W), a number from 1 for each cell, 0 elsewhere; numbers may be left out.
        scores: of the found cells, in the order of their numbers.
    """
    overlap = _overlaps(found, reference)
    if len(scores) != len(overlap.areas_found):
        raise ValueError(f"{len(scores)} scores for {len(overlap.areas_found)} found cells")
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    is_match = np.zeros((len(thresholds), len(order)), bool)
    union = overlap.areas_found[overlap.found] + overlap.areas_true[overlap.true] - overlap.pixels
    iou = overlap.pixels / union
    # By rank, then the last of those with the highest IoU: COCO lets a later true cell win a tie.
    turn = np.lexsort((-overlap.true, -iou, rank[overlap.found]))
    for row, threshold in enumerate(thresholds):
        least = min(float(threshold), 1 - 1e-10)
        taken: set[int] = set()
        for pair in turn[iou[turn] >= least].tolist():
            place, true = int(rank[overlap.found[pair]]), int(overlap.true[pair])
            if not is_match[row, place] and true not in taken:
                is_match[row, place] = True
                taken.add(true)
    return MatchedCells(np.asarray(scores, np.float64)[order], is_match, len(overlap.areas_true))


def score_instances(images: Sequence[MatchedCells]) -> InstanceScore:
    """Score the found cells of several images. Their order decides between cells of equal scores, as in COCO, where it
    is that of the images' numbers."""
    num_true = sum(image.num_true for image in images)
    num_found = sum(image.num_found for image in images)
    precision = average_precision(images)
    hits = sum(int(image.is_match[0].sum()) for image in images)
    return InstanceScore(
        num_true=num_true,
        num_found=num_found,
        ap=None if precision is None else float(precision.mean()),
        ap_50=None if precision is None else float(precision[0].mean()),
        ap_75=None if precision is None else float(precision[5].mean()),
        f1_50=2 * hits / (num_true + num_found) if num_true + num_found else None,
        mean_count_error=float(np.mean([abs(image.num_found - image.num_true) for image in images])),
    )


def average_precision(images: Sequence[MatchedCells]) -> np.ndarray | None:
    """Return the precision at each IoU threshold and each recall of `RECALLS`, fp64 (T, 101), whose mean is AP. None
    where there is no true cell.

    The precision at a recall is the highest at this or a higher recall, and 0 where the recall is not reached.
    """
    num_true = sum(image.num_true for image in images)
    if not num_true:
        return None
    order = np.argsort(-np.concatenate([image.scores for image in images]), kind="stable")
    hits = np.concatenate([image.is_match for image in images], axis=1)[:, order]
    found = np.zeros((len(hits), len(RECALLS)))
    for row, hit in zip(found, hits, strict=True):
        right, wrong = np.cumsum(hit).astype(np.float64), np.cumsum(~hit).astype(np.float64)
        precision = right / (right + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(right / num_true, RECALLS, side="left")
        reached = places < len(precision)
        row[reached] = precision[places[reached]]
    return found


def mean_by_cell(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean of `values` (H, W) in each cell of `labels` (H, W), fp64 (N,), in the order of their numbers.
    It is the score of a found cell, where the values are probabilities."""
    numbers, places = np.unique(labels, return_inverse=True)
    sums = np.bincount(places.ravel(), np.asarray(values, np.float64).ravel(), minlength=len(numbers))
    means = sums / np.bincount(places.ravel(), minlength=len(numbers))
    return means[numbers > 0]


@dataclass(frozen=True)
class _Overlaps:
    """Pairs of cells that share pixels: places of both, from 0, and how many pixels they share; and all areas."""

    found: np.ndarray
    true: np.ndarray
    pixels: np.ndarray
    areas_found: np.ndarray
    areas_true: np.ndarray


def _overlaps(found: np.ndarray, reference: np.ndarray) -> _Overlaps:
    numbers_found, places_found = np.unique(found, return_inverse=True)
    numbers_true, places_true = np.unique(reference, return_inverse=True)
    width = len(numbers_true)
    pairs, pixels = np.unique(places_found.ravel().astype(np.int64) * width + places_true.ravel(), return_counts=True)
    areas_found = np.bincount(places_found.ravel(), minlength=len(numbers_found))
    areas_true = np.bincount(places_true.ravel(), minlength=width)
    first, second = pairs // width, pairs % width
    both = (numbers_found[first] > 0) & (numbers_true[second] > 0)
    # Where a label image has background, it stands first, and cells are counted from the place after it.
    of_found, of_true = (int(len(numbers) > 0 and numbers[0] == 0) for numbers in (numbers_found, numbers_true))
    return _Overlaps(
        first[both] - of_found, second[both] - of_true, pixels[both], areas_found[of_found:], areas_true[of_true:]
    )
