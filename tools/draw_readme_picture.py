"""Draw README's picture: a T98G field beside the same field with the hand-drawn cells tinted and outlined.

    python tools/draw_readme_picture.py --source T98G --out docs/pictures/t98g.jpg

T98G is the data set of docs/t98g.md in CVAT's layout: `annotations/instances_default.json`, `images/default/`.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

from glioma_dist.data.sample import read_image
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.files import write_atomically
from glioma_dist.inference.results import overlay

GAP_PX = 8
QUALITY = 85


def hand_drawn_mask(source: Path, field: str) -> np.ndarray:
    """The union of a field's outlined cells, (H, W) uint8 of 0 and 1."""
    coco = COCO(str(source / "annotations" / "instances_default.json"))
    (number,) = [number for number, image in coco.imgs.items() if Path(image["file_name"]).stem == field]
    masks = [coco.annToMask(cell) for cell in coco.loadAnns(coco.getAnnIds(number))]
    return np.maximum.reduce(masks).astype(np.uint8)


def draw(image: np.ndarray, mask: np.ndarray, rows: slice) -> np.ndarray:
    """Image and overlay side by side. image: (H, W) uint8; mask: (H, W) of 0 and 1; rows: of both, those to show.
    Returns (rows, 2 W + GAP_PX, 3) uint8 RGB."""
    image = normalize_intensity(image, "percentile")[rows]
    left = np.repeat(image[..., None], 3, axis=2)
    gap = np.full((image.shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([left, gap, overlay(image, np.ascontiguousarray(mask[rows]))], axis=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of T98G")
    parser.add_argument("--field", default="field_set11", help="name of the image without its ending")
    parser.add_argument("--rows", type=int, nargs=2, default=(0, 640), help="first row, and the row after the last")
    parser.add_argument("--width", type=int, default=1400, help="of the picture, in pixels")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    field = read_image(arguments.source / "images" / "default" / f"{arguments.field}.png")
    picture = draw(field, hand_drawn_mask(arguments.source, arguments.field), slice(*arguments.rows))
    size = (arguments.width, round(picture.shape[0] * arguments.width / picture.shape[1]))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    write_atomically(arguments.out, jpeg.tobytes())
