"""Touching cells are separated by the network's second output."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import load_benchmark
from scipy import ndimage

pytest.importorskip("skimage", reason="pip install scikit-image")

from glioma_dist.data.sample import IGNORE, Sample
from glioma_dist.errors import InputError
from glioma_dist.evaluation.instances import match_cells
from glioma_dist.evaluation.separation import (
    LEAST_MARKER_PIXELS,
    MOST_SEPARATED_PIXELS,
    check_separable,
    numbered,
    separate,
)
from glioma_dist.model.outputs import Outputs


def touching_discs(shape=(80, 150)) -> np.ndarray:
    """A row of discs that touch, and one that stands alone."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    for number, (top, left, radius) in enumerate([(30, 25, 18), (30, 55, 16), (32, 84, 17), (62, 125, 12)], 1):
        labels[((y - top) ** 2 + (x - left) ** 2 < radius**2) & (labels == 0)] = number
    return labels


def exact_target(labels: np.ndarray, target: str) -> np.ndarray:
    """The second target of true cells, as it is trained: the definition, cell by cell."""
    values = np.zeros(labels.shape)
    for number in range(1, labels.max() + 1):
        cell = np.pad(labels == number, 3)
        depth = ndimage.distance_transform_edt(cell)[3:-3, 3:-3]
        inside = labels == number
        if target == "distance":
            values[inside] = (depth / depth.max())[inside]
        else:
            near = ndimage.minimum_filter(cell, size=5)[3:-3, 3:-3] == 0
            values[inside & near] = 1
    return values


@pytest.mark.parametrize("target", ["boundary", "distance"])
def test_touching_cells_are_separated(target):
    labels = touching_discs()
    assert ndimage.label(labels > 0, np.ones((3, 3)))[1] == 2  # they are two components
    found = separate((labels > 0).astype(np.uint8), exact_target(labels, target), target)
    assert found.dtype == np.int32
    assert ((found > 0) == (labels > 0)).all()  # each pixel of the mask has a cell
    matched = match_cells(found, np.ones(found.max()), labels)
    assert matched.num_found == matched.num_true == 4
    assert matched.is_match[:9].all()  # up to an IoU of 0.9


@pytest.mark.parametrize("target", ["boundary", "distance"])
def test_components_without_a_marker_are_one_cell(target):
    mask = np.zeros((30, 40), np.uint8)
    mask[3:9, 3:9], mask[12:14, 20:38] = 1, 1
    nowhere = np.full(mask.shape, 1.0 if target == "boundary" else 0.0)
    found = separate(mask, nowhere, target)
    np.testing.assert_array_equal(found, ndimage.label(mask)[0])
    assert separate(np.zeros_like(mask), nowhere, target).max() == 0


def test_small_gaps_in_a_boundary_are_no_cells():
    mask = np.ones((40, 40), np.uint8)
    boundary = np.ones(mask.shape)
    boundary[5:15, 5:15] = 0.1
    boundary[30, 20 : 20 + LEAST_MARKER_PIXELS - 1] = 0.1
    assert separate(mask, boundary, "boundary").max() == 1
    boundary[31, 20 : 20 + LEAST_MARKER_PIXELS - 1] = 0.1
    assert separate(mask, boundary, "boundary").max() == 2


@pytest.mark.parametrize(
    ("target", "marks", "does_not"), [("boundary", 0.399, 0.4), ("distance", 0.5, 0.499)], ids=["boundary", "distance"]
)
def test_markers_begin_at_the_documented_limits(target, marks, does_not):
    """Of the page's table: boundary below 0.4, distance of at least 0.5."""
    mask = np.ones((12, 30), np.uint8)
    values = np.full(mask.shape, does_not)
    assert separate(mask, values, target).max() == 1
    values[3:9, 2:9], values[3:9, 20:27] = marks, marks
    assert separate(mask, values, target).max() == 2


def test_corners_join_pixels_of_a_cell_and_no_markers():
    mask = np.ones((14, 14), np.uint8)
    boundary = np.ones(mask.shape)
    boundary[2:7, 2:7], boundary[7:12, 7:12] = 0.1, 0.1
    assert separate(mask, boundary, "boundary").max() == 2
    # Without a marker, an area whose parts meet at a corner is one cell.
    corner = np.zeros((14, 14), np.uint8)
    corner[2:7, 2:7], corner[7:12, 7:12] = 1, 1
    np.testing.assert_array_equal(separate(corner, np.ones(corner.shape), "boundary"), corner)
    # With one, it grows over the corner: no pixel of the mask is left without a cell.
    boundary[7:12, 7:12] = 1
    np.testing.assert_array_equal(separate(corner, boundary, "boundary"), corner)


@pytest.mark.parametrize("target", ["boundary", "distance"])
@pytest.mark.parametrize("ridge", [9, 17, 26])
def test_markers_grow_to_the_ridge_between_them(target, ridge):
    """And not to half of the way: at column 17 only both are the same."""
    mask = np.zeros((9, 37), np.uint8)
    mask[1:8, 1:36] = 1
    x = np.arange(mask.shape[1])
    heights = np.broadcast_to(0.95 - 0.01 * abs(x - ridge), mask.shape).copy()
    heights[2:7, 2:7], heights[2:7, 30:35] = 0.05, 0.05
    values = heights if target == "boundary" else 1 - heights
    found = separate(mask, values, target)
    assert found.max() == 2
    assert (found[:, :ridge] == mask[:, :ridge]).all()
    assert (found[:, ridge + 1 :] == 2 * mask[:, ridge + 1 :]).all()


def test_cells_are_numbered_by_their_first_pixels():
    labels = np.array([[0, 7, 7], [3, 0, 7], [3, 9, 0]])
    np.testing.assert_array_equal(numbered(labels), [[0, 1, 1], [2, 0, 1], [2, 3, 0]])
    np.testing.assert_array_equal(numbered(labels + 1), [[1, 2, 2], [3, 1, 2], [3, 4, 1]])


def test_too_large_images_are_refused():
    side = int(MOST_SEPARATED_PIXELS**0.5)
    check_separable(side, side)
    with pytest.raises(InputError, match="touching cells are separated in images of up to"):
        check_separable(side, side + 1)


def test_the_benchmark_of_touching_cells_scores_as_evaluate_does():
    """Pixels that nobody labelled count for nothing; an image without a cell in which none is found is right."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:2, :4] = 1
    mask[6:] = IGNORE
    instances = np.where(mask == 1, 1, 0).astype(np.uint16)
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, :2, :4] = maps[0, 6:] = 0.9  # the cell, and where nobody knows
    network = SimpleNamespace(outputs=Outputs())
    sample = Sample("one", np.zeros((8, 8), np.uint8), mask, {}, instances)
    empty = Sample("none", sample.image, np.zeros_like(mask), {}, np.zeros_like(instances))
    for script in load_benchmark("touching_cells"):
        assert script._dice(network, maps, sample) == 1
        assert script._dice(network, np.zeros_like(maps), empty) == 1
        assert script._dice(network, np.zeros_like(maps), sample) == 0
        matched = script._matched(network, maps, sample)
    assert (matched.num_found, matched.num_true) == (1, 1)
