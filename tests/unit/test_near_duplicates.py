"""Pictures that show the same are told apart from others that are only alike: of drawn fields and of real ones."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from data_helpers import draw_field, real_data
from helpers import draw_sample

from glioma_dist.data import near_duplicates
from glioma_dist.data.near_duplicates import LEAST_SIMILARITY, find_near_duplicates, similarity, sketch


def changes(image: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What the module says that it recognises; image: uint8 (H, W)."""
    height, width = image.shape
    values = image.astype(np.float64)
    yield "brightness and contrast", (0.7 * values + 30).round().astype(np.uint8)
    yield "16 bit", image.astype(np.uint16) * 200
    yield "colour", np.repeat(image[..., None], 3, axis=2)
    yield "JPEG", cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_GRAYSCALE)
    yield "blurred", cv2.GaussianBlur(image, (0, 0), 2)
    yield "half the size", cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    yield "cut at two sides", image[height // 40 :, width // 40 :]
    yield "cut by a twentieth", image[height // 20 :, width // 20 :]
    yield "mirrored", image[:, ::-1]
    yield "rotated", np.rot90(image)
    yield "upside down and inverted rows", np.rot90(image, 2)[:, ::-1]


def test_changed_copies_are_the_same_and_other_fields_are_not():
    images = [draw_field(number) for number in range(6)]
    sketches = [sketch(image) for image in images]
    for number, image in enumerate(images):
        for name, changed in changes(image):
            assert similarity(sketches[number], sketch(changed)) >= LEAST_SIMILARITY, (number, name)
            assert similarity(sketch(changed), sketches[number]) >= LEAST_SIMILARITY, (number, name)
    assert find_near_duplicates(sketches) == ([], 0)


def test_all_pairs_are_found_and_the_most_alike_is_the_first(monkeypatch):
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", 3)
    images = [draw_field(number) for number in range(8)]
    pictures = [*images, images[2][:, ::-1], cv2.GaussianBlur(images[5], (0, 0), 3)]
    found, num_omitted = find_near_duplicates([sketch(each) for each in pictures])
    assert [(pair.first, pair.second) for pair in found] == [(2, 8), (5, 9)]
    assert found[0].similarity > 0.999 > found[1].similarity
    assert num_omitted == 0
    monkeypatch.setattr(near_duplicates, "MAX_LOOKED_AT", 1)
    splits = [*"aaaaaaaa", "a", "b"]
    found, num_omitted = find_near_duplicates([sketch(each) for each in pictures], splits)
    assert [(pair.first, pair.second) for pair in found] == [(5, 9)], "those of two splits are looked at first"
    assert num_omitted == 1


def test_pictures_without_anything_are_like_nothing():
    flat = [np.full((64, 80), value, np.uint8) for value in (0, 7, 255)]
    assert find_near_duplicates([sketch(each) for each in [*flat, draw_sample(0).image]]) == ([], 0)
    assert find_near_duplicates([]) == ([], 0)
    assert find_near_duplicates([sketch(flat[0])]) == ([], 0)


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    paths = sorted((real_data("t98g") / "images/default").glob("*.png"))
    paths += sorted(real_data("livecell_1pct").glob("images/*/*.tif"))
    return {path.stem: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths}


def test_no_two_real_fields_are_taken_for_the_same(real):
    """T98G has fields with the same edge of a dish, and LIVECell several fields of a well."""
    assert len(real) == 77
    sketches = [sketch(image) for image in real.values()]
    assert find_near_duplicates(sketches) == ([], 0)
    edge = [list(real).index(f"field_set{number}") for number in (23, 40)]
    assert similarity(*(sketches[place] for place in edge)) < LEAST_SIMILARITY - 0.2


def test_changed_copies_of_real_fields_are_found(real):
    for name, image in list(real.items())[::11]:
        for change, changed in changes(image):
            assert similarity(sketch(image), sketch(changed)) >= LEAST_SIMILARITY, (name, change)
