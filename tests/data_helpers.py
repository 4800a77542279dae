"""Small data sets drawn for the tests, and the independent union of cells that masks are compared with."""

import contextlib
import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from pycocotools.coco import COCO

WIDTH, HEIGHT = 48, 36
CELL = {"id": 1, "name": "cell", "supercategory": "cell"}


def real_data(name: str) -> Path:
    """A folder of real images, or a skip that says where it was looked for."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("GLIOMA_DIST_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"real images are not here: {folder} (GLIOMA_DIST_DATA names another folder)")
    return folder


def square(left: float, top: float, side: float) -> list[list[float]]:
    """A square cell as COCO's list of polygons."""
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def draw_image(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Noise, uint8 (H, W); every seed another."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def draw_field(number: int) -> np.ndarray:
    """A drawn field of several hundred structures, so that two are as different as real ones."""
    generator = np.random.default_rng(number)
    image = np.full((300, 400), 110, np.uint8)
    for _ in range(60):
        x, y, wide, high, angle = generator.integers((0, 0, 4, 4, 0), (400, 300, 30, 14, 180)).tolist()
        cv2.ellipse(image, (x, y), (wide, high), angle, 0, 360, int(generator.integers(60, 220)), -1, cv2.LINE_AA)
    return (image + generator.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def image_record(image_id: object, file_name: str, width: object = WIDTH, height: object = HEIGHT) -> dict:
    """An entry of a COCO file's `images`."""
    return {"id": image_id, "file_name": file_name, "width": width, "height": height}


def annotation(number: object, image_id: object, segmentation: object, **more: object) -> dict:
    """An entry of a COCO file's `annotations`."""
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "segmentation": segmentation,
        "iscrowd": 0,
        **more,
    }


def write_coco(path: Path, images: list, annotations: list | dict, categories: tuple = (CELL,)) -> Path:
    """Write a COCO file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": list(categories), "licenses": []}
    path.write_text(json.dumps(content))
    return path


def write_tiff(path: Path, image: np.ndarray) -> Path:
    """Write an LZW-compressed TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, compression="lzw")
    return path


def write_livecell(folder: Path, splits: dict[str, int]) -> Path:
    """A data set in LIVECell's layout, of as many images a split as `splits` says, two cells each."""
    seed = 0
    for split, num_images in splits.items():
        images, annotations = [], []
        for number in range(num_images):
            seed += 1
            name = f"A172_Phase_A{seed}_1_01d{number % 24:02d}h30m_1.tif"
            write_tiff(folder / "images" / f"livecell_{split}_images" / name, draw_image(seed))
            images.append(image_record(seed, name))
            annotations.append(annotation(2 * seed, seed, square(1 + number, 2, 9.5)))
            annotations.append(annotation(2 * seed + 1, seed, square(20, 5 + number, 12)))
        write_coco(folder / f"livecell_coco_{split}.json", images, annotations)
    return folder


def expected_masks(path: Path, at_most: int | None = None) -> dict[str, np.ndarray]:
    """For each file name of a COCO file the union of its cells by the COCO API's `annToMask`, bool (H, W).

    at_most: for so many images only; the COCO API takes half a minute for four of the largest.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    parts = {
        number
        for number, category in coco.cats.items()
        if category["supercategory"] == "cell_part" or category["name"] == "soma"
    }
    masks: dict[str, np.ndarray] = {}
    for number, image in list(coco.imgs.items())[:at_most]:
        mask = masks.setdefault(image["file_name"], np.zeros((image["height"], image["width"]), bool))
        for entry in coco.imgToAnns[number]:
            if entry["category_id"] not in parts:
                mask |= coco.annToMask(entry) > 0
    return masks
