"""Lay out T98G as a lab has its images, for the first try of docs/own_images.md: 16 images with label PNGs, 14 without.

    python benchmarks/own_images_folder.py --source T98G --out .

Writes `data/plate_7/images`, `data/plate_7/masks` (uint16, one number per cell) and `data/plate_8` below --out.
"""

import argparse
import random
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

from glioma_dist.files import write_atomically

NUM_LABELLED = 16

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of T98G, as in docs/t98g.md")
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()

    coco = COCO(str(arguments.source / "annotations" / "instances_default.json"))
    fields = {Path(image["file_name"]).stem: image for image in coco.imgs.values()}
    labelled = set(random.Random(0).sample(sorted(fields), NUM_LABELLED))
    images, masks, new = (arguments.out / "data" / name for name in ("plate_7/images", "plate_7/masks", "plate_8"))
    for folder in (images, masks, new):
        folder.mkdir(parents=True, exist_ok=True)
    for name, field in fields.items():
        photo = (arguments.source / "images" / "default" / f"{name}.png").read_bytes()
        write_atomically((images if name in labelled else new) / f"{name}.png", photo)
        if name in labelled:
            labels = np.zeros((field["height"], field["width"]), np.uint16)
            for number, cell in enumerate(coco.loadAnns(coco.getAnnIds(field["id"])), start=1):
                labels[coco.annToMask(cell) > 0] = number
            _, png = cv2.imencode(".png", labels)
            write_atomically(masks / f"{name}_cp_masks.png", png.tobytes())
