"""Pictures that show the same: the same field saved, exported, cut or turned again.

Perceptual hashes of 64 bits take evenly lit pictures of one microscope for the same, because what they keep is the
lighting. So each picture is flattened first, and two pictures are compared in two stages: small versions of all pairs
by their correlation, then what is alike there in more detail, after one is aligned to the other, block by block. The
median over the blocks counts: an edge of a plate that two fields share fills only some blocks.

It recognises a copy with other brightness or contrast, with JPEG's losses, blurred, scaled to another size, cut by up
to 5 % of a side, mirrored, or rotated by quarter turns, and most copies with another gamma or strong noise. It does not
recognise a small window of a picture, or one rotated by another angle. Measured: docs/guides/data_report.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

COARSE_PX, FINE_PX = 32, 128
"""Sides of the two versions of a picture; both are square, whatever its shape is."""
SHIFT_PX = 1
"""Of the small versions, tried in each direction: 3 % of a side."""
LEAST_COARSE = 0.35
"""Correlation of small versions above which a pair is looked at in detail. 3 of 2,926 pairs of different real fields
have it."""
LEAST_SIMILARITY = 0.5
"""Median correlation of the blocks above which two pictures count as the same. Different real fields have 0.27 at most;
docs/guides/data_report.md has those of copies."""
BLOCKS_A_SIDE = 4
BLOCK_ROWS = 512
"""Pictures that are compared with all others in one matrix product."""
MAX_LOOKED_AT = 4000
"""Pairs that are looked at in detail, 0.01 s each: those of different splits first, then the most alike."""
LOCAL, FLOOR, HIGHEST = 1 / 8, 0.5, 2.0
"""Of the flattening: width of the neighbourhood as a share of the side; how much of the whole picture's deviation is
added to that of the neighbourhood, so that noise is not enlarged where nothing is; and the largest value."""
FINE_STEPS = 60
"""Values of the larger version are whole numbers of steps from -127 to 127."""
ECC = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-4)
ECC_BLUR_PX = 5


@dataclass(frozen=True)
class Sketch:
    """Both small versions of a picture, flattened: 20 KiB. coarse: float32 (32, 32). fine: int8 (128, 128)."""

    coarse: np.ndarray
    fine: np.ndarray


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures that show the same, by their places. similarity: from 0.5 to 1."""

    first: int
    second: int
    similarity: float


def sketch(image: np.ndarray) -> Sketch:
    """Return what a picture is compared by. image: uint8 or uint16, (H, W) or (H, W, 3)."""
    grey = image if image.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    square = cv2.resize(grey, (FINE_PX, FINE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    # Blurred a little, or what is between two pixels would decide how alike shifted copies are.
    fine = _flattened(cv2.GaussianBlur(square, (0, 0), 1.0))
    step = FINE_PX // COARSE_PX
    blurred = cv2.GaussianBlur(square, (0, 0), step / 2)
    coarse = _flattened(cv2.resize(blurred, (COARSE_PX, COARSE_PX), interpolation=cv2.INTER_AREA))
    return Sketch(coarse, (fine * FINE_STEPS).round().astype(np.int8))


def _flattened(picture: np.ndarray) -> np.ndarray:
    """A picture, float32 (S, S), less its neighbourhood's mean, divided by its neighbourhood's deviation."""
    sigma = len(picture) * LOCAL
    details = picture - cv2.GaussianBlur(picture, (0, 0), sigma)
    deviation = float(details.std())
    if deviation < 1e-3:
        return np.zeros_like(picture)
    local = np.sqrt(cv2.GaussianBlur(details * details, (0, 0), sigma))
    return np.clip(details / (local + FLOOR * deviation), -HIGHEST, HIGHEST)


def similarity(first: Sketch, second: Sketch) -> float:
    """Return how alike two pictures are, from 0 to 1; from `LEAST_SIMILARITY` on they count as the same."""
    turn, shift, coarse = _best_start(first.coarse, second.coarse)
    if coarse < LEAST_COARSE:
        return 0.0
    return _aligned_similarity(first.fine, _turned(second.fine, turn), shift)


def find_near_duplicates(
    sketches: Sequence[Sketch], splits: Sequence[object] | None = None
) -> tuple[list[NearDuplicate], int]:
    """Find all pairs of pictures that show the same, the most alike first.

    splits: of each picture; if too many pairs are alike at first sight, those of different splits are looked at first.
    Returns the pairs, and how many pairs were left out because there were too many.
    """
    candidates = _candidates([each.coarse for each in sketches])
    names = list(range(len(sketches))) if splits is None else splits
    candidates.sort(key=lambda pair: (names[pair[0]] == names[pair[1]], -pair[2], pair[:2]))
    found = []
    for first, second, _ in candidates[:MAX_LOOKED_AT]:
        value = similarity(sketches[first], sketches[second])
        if value >= LEAST_SIMILARITY:
            found.append(NearDuplicate(first, second, value))
    found.sort(key=lambda pair: (-pair.similarity, pair.first, pair.second))
    return found, max(0, len(candidates) - MAX_LOOKED_AT)


def _candidates(coarse: Sequence[np.ndarray]) -> list[tuple[int, int, float]]:
    """Pairs whose small versions are alike, in any turn and shift: first < second, and their correlation."""
    if len(coarse) < 2:
        return []
    templates = _unit(np.stack([_cut(each, 0, 0).ravel() for each in coarse]))
    pairs = []
    for start in range(0, len(coarse) - 1, BLOCK_ROWS):
        rows = templates[start : start + BLOCK_ROWS]
        best = np.full((len(rows), len(coarse) - start), -1.0, np.float32)
        for turn in range(8):
            turned = [_turned(each, turn) for each in coarse[start:]]
            for down, right in _shifts():
                shifted = _unit(np.stack([_cut(each, down, right).ravel() for each in turned]))
                np.maximum(best, rows @ shifted.T, out=best)
        for row, column in np.argwhere(best >= LEAST_COARSE).tolist():
            if row < column:
                pairs.append((start + row, start + column, float(best[row, column])))
    return pairs


def _best_start(first: np.ndarray, second: np.ndarray) -> tuple[int, tuple[int, int], float]:
    """The turn of the second small version and its shift (down, right) in its pixels that make it most like the first,
    and their correlation."""
    template = _unit(_cut(first, 0, 0).ravel())
    found = []
    for turn in range(8):
        turned = _turned(second, turn)
        found += [
            (float(template @ _unit(_cut(turned, down, right).ravel())), turn, (down, right))
            for down, right in _shifts()
        ]
    value, turn, shift = max(found, key=lambda each: each[0])
    return turn, shift, value


def _shifts() -> list[tuple[int, int]]:
    steps = range(-SHIFT_PX, SHIFT_PX + 1)
    return [(down, right) for down in steps for right in steps]


def _cut(coarse: np.ndarray, down: int, right: int) -> np.ndarray:
    """All but the edge, moved by some pixels."""
    size = COARSE_PX - 2 * SHIFT_PX
    top, left = SHIFT_PX + down, SHIFT_PX + right
    return coarse[top : top + size, left : left + size]


def _turned(picture: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight ways to mirror a square picture and rotate it by quarter turns; 0: as it is."""
    rotated = np.rot90(picture, turn // 2)
    return rotated[:, ::-1] if turn % 2 else rotated


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, so that a product is a correlation; 0 where nothing is to be seen."""
    rows = rows - rows.mean(-1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)


def _aligned_similarity(first: np.ndarray, second: np.ndarray, shift: tuple[int, int]) -> float:
    """Median correlation of the blocks of two larger versions, int8 (128, 128), once the second is aligned to the first
    (Evangelidis & Psarakis 2008, doi 10.1109/TPAMI.2008.113, in OpenCV), beginning with a shift of small pixels."""
    pictures = [np.ascontiguousarray(each, np.float32) for each in (first, second)]
    step = FINE_PX // COARSE_PX
    start = np.array([[1, 0, step * shift[1]], [0, 1, step * shift[0]]], np.float32)
    try:
        _, matrix = cv2.findTransformECC(*pictures, start, cv2.MOTION_AFFINE, ECC, None, ECC_BLUR_PX)
    except cv2.error:  # they are so different that it finds no end
        return 0.0
    size, inverse = (FINE_PX, FINE_PX), cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(pictures[1], matrix, size, flags=cv2.INTER_LINEAR | inverse)
    covered = cv2.warpAffine(np.ones_like(pictures[1]), matrix, size, flags=cv2.INTER_NEAREST | inverse) > 0
    values = []
    for rows in np.array_split(np.arange(FINE_PX), BLOCKS_A_SIDE):
        for columns in np.array_split(np.arange(FINE_PX), BLOCKS_A_SIDE):
            block = np.ix_(rows, columns)
            inside = covered[block]
            if inside.mean() < 0.5:
                continue
            one, other = (_unit(each[block][inside]) for each in (pictures[0], moved))
            values.append(float(one @ other))
    if len(values) <= BLOCKS_A_SIDE**2 / 2:
        return 0.0
    return max(0.0, float(np.median(values)))
