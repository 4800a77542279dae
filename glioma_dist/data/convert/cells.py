"""Cells: what COCO's segmentations say, examined and drawn as one binary mask.

pycocotools rasterises them, as the COCO API itself does. Its C code takes what it is given: a coordinate that
is no number, or far away, hangs it. Every segmentation is therefore examined first.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from glioma_dist.data.convert.audit import (
    COORDINATES_OUTSIDE,
    DOUBLED_CONTOUR,
    EMPTY_SEGMENTATION,
    OVERLAP,
    SIZE_MISMATCH,
    SUSPICIOUS_MASK,
    Finding,
)
from glioma_dist.data.convert.layers import draw_layers
from glioma_dist.limits import MAX_INSTANCES

MAX_SHARE = 0.95
"""Of an image's pixels that one contour covers before the mask is said to be suspicious."""
MAX_COVERAGE = 0.995
"""The same for all cells together; confluent cultures come near it."""
MAX_SHARE_BEYOND, MIN_BEYOND = 0.25, 3
"""Where more than this share of an image's cells, and so many at least, reach beyond it, a larger one was labelled."""
FAR_PX = 2.0


class Rle(NamedTuple):
    """Run lengths down the columns, background first. counts: integers (N,), or COCO's compressed text."""

    size: tuple
    counts: np.ndarray | str


Segmentation = list[np.ndarray] | Rle
"""A cell: polygons, each float64 (x0, y0, x1, y1, …) in pixels, or run lengths."""


class DrawnCells(NamedTuple):
    """mask: uint8 (H, W), 0 or 1, or class numbers; num_cells: how many different cells are in it; findings: what was
    odd. instances: uint16 (H, W), a number for each cell from 1; None where there were no classes to draw."""

    mask: np.ndarray
    num_cells: int
    findings: list[Finding]
    instances: np.ndarray | None = None


def as_segmentation(value: object) -> Segmentation:
    """A segmentation as COCO files have it, as arrays; what is not numbers becomes NaN, a defect."""
    if isinstance(value, Rle):
        return value
    if isinstance(value, dict):
        counts, size = value.get("counts"), value.get("size")
        size = tuple(as_whole(number) for number in size) if isinstance(size, (list, tuple)) else ()
        if isinstance(counts, bytes):
            counts = counts.decode("latin-1")
        return Rle(size, counts if isinstance(counts, str) else _numbers(counts))
    if not isinstance(value, (list, tuple)):
        return []
    if value and not isinstance(value[0], (list, tuple, np.ndarray)):
        # One polygon that is not wrapped in a list of polygons.
        value = [value]
    return [polygon if isinstance(polygon, np.ndarray) else _numbers(polygon) for polygon in value]


def _numbers(values: object) -> np.ndarray:
    """Numbers, also such as arrive as text, as float64 (N,)."""
    try:
        return np.array(values, np.float64).ravel()
    except (TypeError, ValueError):
        return np.full(6, np.nan)


def as_whole(value: object) -> int:
    """A width or height; 0 where none is given."""
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return 0


def draw_cells(
    segmentations: list[Segmentation], height: int, width: int, classes: list[int] | None = None
) -> DrawnCells:
    """Rasterise what can be drawn of the cells, and tell what is odd.

    The mask is the union of the cells, pixel for pixel that of COCO's `annToMask`. classes: the class number of each;
    the mask then has these, and each cell a number (layers.py).
    """
    objects: list[tuple[int, np.ndarray | dict]] = []  # number of the cell, what of it may be drawn
    seen: dict[bytes, int] = {}  # what tells a contour from others -> number of the cell
    at_edge: dict[int, list] = {}
    odd: Counter = Counter()
    num_cells = 0
    class_of: list[int] = []  # of each cell that is drawn
    for place, segmentation in enumerate(segmentations):
        problem, drawable, identity = _examine(segmentation, height, width)
        if problem is not None:
            odd[problem] += 1
        if not drawable:
            continue
        number = 1 if classes is None else classes[place]
        if identity in seen:
            odd[_Problem(DOUBLED_CONTOUR, False, "the same contour as another cell; drawn once")] += 1
            # Of two classes the later one, as where cells overlap, and not the one that the file has first.
            class_of[seen[identity]] = max(class_of[seen[identity]], number)
            continue
        seen[identity] = num_cells
        objects.extend((num_cells, shape) for shape in drawable)
        if problem is not None and problem.kind == COORDINATES_OUTSIDE:
            at_edge[num_cells] = drawable
        class_of.append(number)
        num_cells += 1
    mask = np.zeros((height, width), np.uint8)
    num_large, by_cell = 0, {}
    if objects:
        # Polygons and run lengths alike become pycocotools' own run lengths, whose union it then takes.
        objects.sort(key=lambda cell: isinstance(cell[1], dict))
        polygons = [shape for _, shape in objects if isinstance(shape, np.ndarray)]
        encoded = coco_mask.frPyObjects(polygons, height, width) if polygons else []
        encoded = encoded + [coco_mask.frPyObjects(run, height, width) for _, run in objects[len(polygons) :]]
        blank = coco_mask.encode(np.asfortranarray(mask))["counts"]
        for (cell, _), runs in zip(objects, encoded, strict=True):
            if runs["counts"] != blank:
                by_cell.setdefault(cell, []).append(runs)
        seen_cells = set(by_cell)
        if num_blank := num_cells - len(seen_cells):
            odd[_Problem(EMPTY_SEGMENTATION, False, "outline that covers no pixel; not counted")] += num_blank
            num_cells -= num_blank
        mask = np.ascontiguousarray(coco_mask.decode(_merge(encoded)))
        if mask.mean() > MAX_SHARE:
            num_large = sum(bool(coco_mask.decode(runs).mean() > MAX_SHARE) for runs in encoded)
    for detail in _suspicions(mask, num_large, len(seen), at_edge):
        odd[_Problem(SUSPICIOUS_MASK, False, detail)] += 1
    findings = [Finding(problem.kind, f"{count} x {problem.detail}", problem.spoils) for problem, count in odd.items()]
    if classes is None:
        return DrawnCells(mask, num_cells, findings)
    return _with_layers(DrawnCells(mask, num_cells, findings), by_cell, class_of)


def _with_layers(drawn: DrawnCells, by_cell: dict[int, list[dict]], class_of: list[int]) -> DrawnCells:
    """Draw classes and numbers. by_cell: cell -> its parts as pycocotools' run lengths; class_of: the class of each."""
    if drawn.num_cells > MAX_INSTANCES:
        detail = f"{drawn.num_cells} cells, and {MAX_INSTANCES} can have a number; cut the image into smaller ones"
        return drawn._replace(findings=[*drawn.findings, Finding(OVERLAP, detail, True)])
    cells, findings = sorted(by_cell), [*drawn.findings]
    layers = draw_layers(
        [_merge(by_cell[cell]) for cell in cells], [class_of[cell] for cell in cells], *drawn.mask.shape
    )
    if layers.num_shared:
        detail = f"{layers.num_shared} pixels of cells of several classes; they are of the class named last"
        findings.append(Finding(OVERLAP, detail, False))
    if layers.num_hidden:
        detail = f"{layers.num_hidden} x cell that others cover whole; it has no number"
        findings.append(Finding(OVERLAP, detail, False))
    return DrawnCells(layers.mask, drawn.num_cells, findings, layers.instances)


def _suspicions(mask: np.ndarray, num_large: int, num_cells: int, at_edge: dict[int, list]) -> list[str]:
    """What is suspicious about a mask as a whole. at_edge: number of a cell -> polygons, of those at the edge."""
    height, width = mask.shape
    found = []
    if num_large:
        found.append(f"contour that covers more than {MAX_SHARE:.0%} of the image; is it background?")
    elif mask.size and mask.mean() > MAX_COVERAGE:
        found.append(f"mask that covers {mask.mean():.1%} of the image; are these labels cells?")
    num_beyond = sum(any(_is_beyond(shape, height, width) for shape in shapes) for shapes in at_edge.values())
    if num_beyond >= MIN_BEYOND and num_beyond > MAX_SHARE_BEYOND * num_cells:
        found.append(
            f"image where {num_beyond} of {num_cells} cells reach beyond the edge; were they drawn on a larger picture?"
        )
    return found


def _is_beyond(polygon: np.ndarray, height: int, width: int) -> bool:
    x, y = polygon[0::2], polygon[1::2]
    return bool(x.max() > width + FAR_PX or y.max() > height + FAR_PX or polygon.min() < -FAR_PX)


def _merge(encoded: list[dict]) -> dict:
    """The union of pycocotools' run lengths, eight at a time.

    Merging all of 300 cells one after another goes through the growing union 300 times: seven times slower.
    """
    while len(encoded) > 1:
        encoded = [coco_mask.merge(encoded[start : start + 8]) for start in range(0, len(encoded), 8)]
    return encoded[0]


class _Problem(NamedTuple):
    kind: str
    spoils: bool
    detail: str


def _examine(segmentation: Segmentation, height: int, width: int) -> tuple[_Problem | None, list, bytes]:
    """What is wrong with a segmentation, what of it may be drawn, and bytes that tell it from others."""
    if isinstance(segmentation, Rle):
        return _examine_rle(segmentation, height, width)
    problem, drawable = None, []
    for polygon in segmentation:
        if polygon.size < 6:
            problem = problem or _Problem(EMPTY_SEGMENTATION, False, "polygon of fewer than three points; not drawn")
            continue
        x, y = polygon[0::2], polygon[1::2]
        low, high_x, high_y = polygon.min(), x.max(), y.max()
        if not is_near(polygon, height, width):
            return (
                _Problem(COORDINATES_OUTSIDE, True, "coordinate far outside the image, or no number"),
                [],
                b"",
            )
        if polygon.size % 2:
            return _Problem(EMPTY_SEGMENTATION, True, "polygon with an x and no y: it is damaged"), [], b""
        if low < 0 or high_x >= width or high_y >= height:
            problem = _Problem(COORDINATES_OUTSIDE, False, "cell reaches the image's edge or beyond; cut there")
        drawable.append(polygon)
    if not drawable and problem is None:
        problem = _Problem(EMPTY_SEGMENTATION, False, "cell without outline (a box only?); not in the mask")
    return problem, drawable, b"|".join(polygon.tobytes() for polygon in drawable)


def is_near(numbers: np.ndarray, height: int, width: int) -> bool:
    """Whether coordinates are numbers that are not far outside an image: others would hang pycocotools."""
    reach = max(height, width)
    return bool(numbers.min() >= -reach and numbers.max() <= 2 * reach)


def _examine_rle(rle: Rle, height: int, width: int) -> tuple[_Problem | None, list, bytes]:
    if rle.size != (height, width):
        return (
            _Problem(SIZE_MISMATCH, True, f"run lengths of size {rle.size}, image {(height, width)}"),
            [],
            b"",
        )
    counts = _decompress(rle.counts, height * width) if isinstance(rle.counts, str) else rle.counts
    # The total is taken of numbers known to be small: a sum of huge ones would wrap around.
    in_range = np.all((counts >= 0) & (counts <= height * width))
    if not in_range or counts.sum() != height * width or not np.all(counts == np.floor(counts)):
        return _Problem(SIZE_MISMATCH, True, f"run lengths that do not fill {width}x{height} pixels"), [], b""
    if not counts[1::2].any():
        return _Problem(EMPTY_SEGMENTATION, False, "run lengths without a pixel; not in the mask"), [], b""
    return (
        None,
        [{"size": [height, width], "counts": counts.astype(np.int64).tolist()}],
        b"rle" + counts.tobytes(),
    )


def _decompress(text: str, most: int) -> np.ndarray:
    """COCO's compressed run lengths as numbers, int64 (rleFrString of cocoapi's maskApi.c).

    Five bits a character, least first; bit 6 says that more follow, bit 5 of the last is the sign; from the
    third run on the difference to the run before the last. Returns (-1,) where the text is damaged.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return np.array([-1])
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        if not 0 <= counts[-1] <= most:
            return np.array([-1])
        value = shift = 0
    return np.array(counts if shift == 0 else [-1], np.int64)
