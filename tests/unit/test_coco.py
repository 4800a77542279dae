"""COCO files and masks, compared with the COCO API's own `annToMask`."""

import time

import numpy as np
import pytest
from data_helpers import (
    CELL,
    HEIGHT,
    WIDTH,
    annotation,
    expected_masks,
    image_record,
    square,
    write_coco,
)
from pycocotools import mask as coco_mask

from glioma_dist.data.convert.cells import Rle, as_segmentation, draw_cells
from glioma_dist.data.convert.coco import load_coco
from glioma_dist.errors import InputError

NAN = float("nan")


def union_mask(segmentations: list, height: int, width: int) -> np.ndarray:
    """The mask of all cells, as a conversion draws it. Raises InputError for what spoils an image's mask."""
    drawn = draw_cells([as_segmentation(entry) for entry in segmentations], height, width)
    for finding in drawn.findings:
        if finding.spoils:
            raise InputError(f"{finding.kind}: {finding.detail}")
    return drawn.mask


def random_polygon(generator: np.random.Generator) -> list[float]:
    """Three to nine points, some at the border and some beyond it."""
    num_points = generator.integers(3, 10)
    points = generator.uniform(-6, [WIDTH + 6, HEIGHT + 6], (num_points, 2))
    return points.round(generator.integers(0, 3)).ravel().tolist()


def random_segmentation(generator: np.random.Generator) -> tuple[object, int]:
    """Polygons of one or two parts, or run lengths plain or compressed; and `iscrowd`."""
    kind = generator.integers(4)
    if kind < 2:
        return [random_polygon(generator) for _ in range(kind + 1)], 0
    pixels = np.asfortranarray(generator.random((HEIGHT, WIDTH)) < generator.choice([0.001, 0.02, 0.5]), np.uint8)
    pixels[0, 0] |= 1 - pixels.any()
    compressed = coco_mask.encode(pixels)
    if kind == 2:
        return {"size": compressed["size"], "counts": compressed["counts"].decode()}, int(generator.integers(2))
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}, 1


def write_random(path, num_images=40):
    generator = np.random.default_rng(5)
    annotations = []
    for number in range(num_images * 5):
        segmentation, crowd = random_segmentation(generator)
        category = int(generator.choice([1, 1, 1, 2, 3]))
        entry = annotation(number, number % num_images, segmentation, iscrowd=crowd, category_id=category, area=1.0)
        annotations.append(entry)
    categories = (CELL, {"id": 2, "name": "nucleus", "supercategory": "cell_part"})
    soma = {"id": 3, "name": "soma", "supercategory": ""}
    images = [image_record(number, f"{number}.png") for number in range(num_images)]
    return write_coco(path, images, annotations, (*categories, soma))


def test_every_union_is_that_of_the_coco_api(tmp_path):
    path = write_random(tmp_path / "a.json")
    expected = expected_masks(path)
    images = load_coco(path).images
    assert len(images) == len(expected) == 40
    assert {type(cell) for image in images for cell in image.cells} == {list, Rle}
    for image in images:
        found = union_mask(image.cells, HEIGHT, WIDTH)
        assert found.dtype == np.uint8
        assert found.shape == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(found == 1, expected[image.file_name], err_msg=image.file_name)


def test_segmentations_may_be_as_the_file_has_them():
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[3:8, 2:7] = 1
    flat = square(2, 3, 5)[0]
    encoded = coco_mask.encode(np.asfortranarray(expected))
    for segmentation in (
        [flat],
        flat,
        [[str(number) for number in flat]],
        [np.array(flat)],
        encoded,
        {"size": [str(HEIGHT), float(WIDTH)], "counts": encoded["counts"].decode()},
    ):
        np.testing.assert_array_equal(union_mask([segmentation], HEIGHT, WIDTH), expected)
    assert not union_mask([], HEIGHT, WIDTH).any()


def test_hostile_coordinates_are_refused_and_quickly():
    start = time.process_time()
    for number in (NAN, float("inf"), -float("inf"), 1e9, -1e9, 1e300, 1e4, "x", None):
        segmentation = [[1, 1, 20, 1, 20, number]]
        with pytest.raises(InputError, match="coordinates-outside"):
            union_mask([square(1, 1, 5), segmentation], HEIGHT, WIDTH)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "counts",
    [
        [10, 10],
        [10, 10**9],
        [10, -5, HEIGHT * WIDTH - 5],
        [2**62, 2**62, 2**62, 2**62, HEIGHT * WIDTH],
        [0.5, HEIGHT * WIDTH - 0.5],
        [NAN, 3],
        ["x"],
        [],
        None,
        "abc",
        "",
        "oooooooooooooooooooooooooooooo",
        "\u20ac",
        "0" * 10_000,
    ],
)
def test_broken_run_lengths_are_refused(counts):
    with pytest.raises(InputError, match="size-mismatch"):
        union_mask([{"size": [HEIGHT, WIDTH], "counts": counts}], HEIGHT, WIDTH)


@pytest.mark.parametrize("size", [[WIDTH, HEIGHT], [HEIGHT], [], None, ["a", "b"], [10**9, 10**9]])
def test_run_lengths_of_another_size_are_refused(size):
    with pytest.raises(InputError, match="size-mismatch"):
        union_mask([{"size": size, "counts": [0, HEIGHT * WIDTH]}], HEIGHT, WIDTH)


def test_findings_say_what_was_odd_and_what_it_spoils():
    cell = square(1, 1, 9)
    cases = [
        ([], "empty-segmentation", False),
        ([[]], "empty-segmentation", False),
        ([[1, 2, 3, 4]], "empty-segmentation", False),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "empty-segmentation", False),
        (None, "empty-segmentation", False),
        ([[1, 1, 9, 1, 9, 9, 1]], "empty-segmentation", True),
        ([[WIDTH - 5, 1, WIDTH, 1, WIDTH, 5]], "coordinates-outside", False),
        ([[-3, 1, 5, 1, 5, 5]], "coordinates-outside", False),
        ([[1, 1, 5, 1, 5, 500]], "coordinates-outside", True),
        (cell, "doubled-contour", False),
    ]
    for segmentation, kind, spoils in cases:
        drawn = draw_cells([as_segmentation(cell), as_segmentation(segmentation)], HEIGHT, WIDTH)
        assert [(finding.kind, finding.spoils) for finding in drawn.findings] == [(kind, spoils)], segmentation
        assert drawn.mask[5, 5] == 1
        is_drawn_too = kind == "coordinates-outside" and not spoils
        assert drawn.num_cells == 1 + is_drawn_too


def test_records_of_one_name_become_one_image(tmp_path):
    images = [image_record(1, "a.png"), image_record("2", "a.png"), image_record(3.0, "b.png")]
    annotations = [
        annotation(1, "1", square(1, 1, 4)),
        annotation(2, 2, square(20, 9, 4)),
        annotation(3, 3, square(5, 5, 4)),
        annotation(4, 99, square(5, 5, 4)),
        {"id": 5, "segmentation": []},
    ]
    coco = load_coco(write_coco(tmp_path / "a.json", images, annotations))
    assert [(image.file_name, len(image.sizes), len(image.cells)) for image in coco.images] == [
        ("a.png", 2, 2),
        ("b.png", 1, 1),
    ]
    assert coco.orphans == {"99": 1, "(none given)": 1}
    assert union_mask(coco.images[0].cells, HEIGHT, WIDTH).sum() == 32


def test_annotations_may_be_keyed_by_id(tmp_path):
    images = [image_record(1, "a.png")]
    entries = [annotation(n, 1, square(n, n, 4)) for n in range(5)]
    as_list = load_coco(write_coco(tmp_path / "a.json", images, entries))
    keyed = load_coco(write_coco(tmp_path / "b.json", images, {str(entry["id"]): entry for entry in entries}))
    masks = [union_mask(coco.images[0].cells, HEIGHT, WIDTH) for coco in (as_list, keyed)]
    np.testing.assert_array_equal(*masks)
    assert masks[0].any()


def test_images_that_share_an_id_are_told(tmp_path):
    images = [image_record(1, "a.png"), image_record(1, "b.png"), image_record(2, "c.png")]
    assert load_coco(write_coco(tmp_path / "a.json", images, [])).shared_ids == {"a.png", "b.png"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": []}', "5", '{"annotations": {}}', "[" * 100_000])
def test_what_is_no_coco_file_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"a\.json: (is no JSON|no COCO file)"):
        load_coco(path)


def test_odd_entries_do_not_crash(tmp_path):
    odd = [None, 5, [], {}, {"id": []}, {"file_name": None, "id": {}, "width": "x", "height": []}]
    coco = load_coco(write_coco(tmp_path / "a.json", odd, [*odd, {"image_id": []}, {"image_id": None}]))
    assert {size for image in coco.images for size in image.sizes} == {(0, 0)}
    with pytest.raises(InputError, match="no such file"):
        load_coco(tmp_path / "none.json")
