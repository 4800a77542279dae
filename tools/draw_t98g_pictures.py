"""Draw the pictures of README and docs/own_images.md: a T98G field and its hand-drawn cells, tinted and outlined; or
its hand-drawn cells and a predicted mask.

    python tools/draw_t98g_pictures.py --source T98G --out docs/pictures/t98g.jpg
    python tools/draw_t98g_pictures.py --source T98G --field field_set12 --rows 300 940 \\
        --predicted preds/first_try/field_set12.mask.png --out docs/pictures/first_try.jpg

T98G is the data set of docs/t98g.md in CVAT's layout: `annotations/instances_default.json`, `images/default/`.
"""

import argparse
from collections.abc import Sequence
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


def draw(pictures: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Two pictures side by side, scaled to `width` pixels together. Each uint8 (H, W) or (H, W, 3)."""
    left, right = (np.repeat(each[..., None], 3, axis=2) if each.ndim == 2 else each for each in pictures)
    both = np.concatenate([left, np.full((left.shape[0], GAP_PX, 3), 255, np.uint8), right], axis=1)
    return cv2.resize(both, (width, round(both.shape[0] * width / both.shape[1])), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of T98G")
    parser.add_argument("--field", default="field_set11", help="name of the image without its ending")
    parser.add_argument("--predicted", type=Path, help="a mask of this field, to show beside the hand-drawn one")
    parser.add_argument("--rows", type=int, nargs=2, default=(0, 640), help="first row, and the row after the last")
    parser.add_argument("--width", type=int, default=1400, help="of the picture, in pixels")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    rows = slice(*arguments.rows)
    field = read_image(arguments.source / "images" / "default" / f"{arguments.field}.png")
    image = normalize_intensity(field, "percentile")[rows]
    drawn = overlay(image, hand_drawn_mask(arguments.source, arguments.field)[rows])
    pictures = [image, drawn]
    if arguments.predicted:
        pictures = [drawn, overlay(image, np.minimum(read_image(arguments.predicted)[rows], 1))]
    _, jpeg = cv2.imencode(".jpg", draw(pictures, arguments.width)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    write_atomically(arguments.out, jpeg.tobytes())
