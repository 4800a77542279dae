"""The scripts that lay out T98G for docs/own_images.md and draw the pictures, on a tiny data set of the same layout."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import command

NAMES = [f"field_set{number:02}" for number in range(18)]
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("t98g")
    (root / "images/default").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, cells = [], []
    for number, name in enumerate(NAMES):
        cv2.imwrite(str(root / f"images/default/{name}.png"), np.full((24, 32), 90 + number, np.uint8))
        images.append({"id": number, "file_name": f"default/{name}.png", "height": 24, "width": 32})
        for shift in (0, 15):
            polygon = [value + shift * (place % 2 == 0) for place, value in enumerate(SQUARE)]
            cell = {"id": len(cells) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 64}
            cells.append(cell | {"segmentation": [polygon]})
    content = {"images": images, "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}
    (root / "annotations/instances_default.json").write_text(json.dumps(content))
    return root


def test_sixteen_images_get_a_label_for_each_cell_and_the_others_are_new(source, tmp_path):
    ended = command("tools/own_images_folder.py", "--source", source, "--out", tmp_path)
    assert ended.exit_code == 0, ended.stderr
    images, masks, new = (tmp_path / "data" / name for name in ("plate_7/images", "plate_7/masks", "plate_8"))
    labelled = {path.stem for path in images.iterdir()}
    assert len(labelled) == 16
    assert {path.name for path in masks.iterdir()} == {f"{name}_cp_masks.png" for name in labelled}
    assert {path.stem for path in new.iterdir()} == set(NAMES) - labelled
    mask = cv2.imread(str(next(masks.iterdir())), cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint16
    expected = np.zeros((24, 32), np.uint16)
    expected[4:12, 4:12], expected[4:12, 19:27] = 1, 2
    assert np.array_equal(mask, expected)


def test_a_pair_shows_the_image_beside_its_cells(source, tmp_path):
    assert command("tools/own_images_folder.py", "--source", source, "--out", tmp_path).exit_code == 0
    image = next((tmp_path / "data/plate_8").iterdir())
    mask = tmp_path / "data/plate_8_masks" / f"{image.stem}_cp_masks.png"
    flags = ("--image", image, "--rows", 0, 24, "--width", 720, "--out", tmp_path / "a.jpg")
    ended = command("tools/draw_pair.py", *flags, "--mask", mask)
    assert ended.exit_code == 0, ended.stderr
    picture = cv2.imread(str(tmp_path / "a.jpg")).astype(int)
    assert picture.shape[1] == 720
    colour = np.ptp(picture, axis=2).max(0)
    assert colour[:300].max() < 20, "the left half is grey"
    assert colour[420:].max() > 60, "the right half has outlines"
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((20, 32), np.uint8))
    refused = command("tools/draw_pair.py", *flags, "--mask", tmp_path / "small.png")
    assert refused.exit_code == 2
    assert "small.png: has 32x20 pixels, its image 32x24" in refused.stderr


def test_a_plot_is_set_beside_the_cells(source, tmp_path):
    image, mask, plot = (tmp_path / f"{name}.png" for name in ("image", "mask", "plot"))
    cv2.imwrite(str(image), np.full((100, 120), 90, np.uint8))
    cv2.imwrite(str(mask), np.pad(np.ones((40, 40), np.uint8), ((30, 30), (40, 40))))
    cv2.imwrite(str(plot), np.full((200, 300, 3), (255, 255, 250), np.uint8))
    flags = ("--image", image, "--mask", mask, "--beside", plot, "--rows", 0, 100, "--width", 556)
    ended = command("tools/draw_pair.py", *flags, "--out", tmp_path / "a.jpg")
    assert ended.exit_code == 0, ended.stderr
    picture = cv2.imread(str(tmp_path / "a.jpg"))
    assert picture.shape == (200, 556, 3), "the plot has the height of the image"
    assert np.ptp(picture[:, :240].astype(int), axis=2).max() > 60, "outlines"
    assert picture[:, 260:].min() > 240
