"""Lay out T98G as a lab has its images, for the first try of docs/own_images.md: 16 images with label PNGs, 14 without.

python tools/own_images_folder.py --source T98G
"""

import random
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

from glioma_dist.cli.arguments import parse
from glioma_dist.distributed.run_command import run_command
from glioma_dist.files import make_folder, read_bytes, read_json, write_atomically

NUM_LABELLED = 16
PLATE_7 = "data/plate_7/images", "data/plate_7/masks"
PLATE_8 = "data/plate_8", "data/plate_8_masks"
MAX_IMAGE_BYTES = 2**24


@dataclass(frozen=True)
class FolderConfig:
    """Write data/plate_7/images, data/plate_7/masks (uint16, one number per cell), data/plate_8, and
    data/plate_8_masks, which a lab would not have."""

    source: Path
    """Folder of T98G in CVAT's layout: annotations/instances_default.json, images/default/."""
    out: Path = Path()
    """Folder in which `data` is made. By default: this one."""


def open_t98g(source: Path) -> tuple[COCO, dict[str, dict]]:
    """Return the annotations, and of each field its name without ending and what they say of it. Raises InputError."""
    coco = COCO()
    coco.dataset = read_json(source / "annotations" / "instances_default.json")
    coco.createIndex()
    return coco, {Path(image["file_name"]).stem: image for image in coco.imgs.values()}


def draw_labels(coco: COCO, field: dict) -> np.ndarray:
    """Return the field's cells, numbered from 1 in the order of the annotations: (H, W) uint16."""
    labels = np.zeros((field["height"], field["width"]), np.uint16)
    for number, cell in enumerate(coco.loadAnns(coco.getAnnIds(field["id"])), start=1):
        labels[coco.annToMask(cell) > 0] = number
    return labels


def main() -> None:
    config = parse(FolderConfig)
    coco, fields = open_t98g(config.source)
    labelled = set(random.Random(0).sample(sorted(fields), NUM_LABELLED))
    for name, field in fields.items():
        images, masks = PLATE_7 if name in labelled else PLATE_8
        photo = read_bytes(config.source / "images" / "default" / f"{name}.png", MAX_IMAGE_BYTES)
        _, labels = cv2.imencode(".png", draw_labels(coco, field))
        for path, content in ((f"{images}/{name}.png", photo), (f"{masks}/{name}_cp_masks.png", labels.tobytes())):
            make_folder((config.out / path).parent)
            write_atomically(config.out / path, content)


if __name__ == "__main__":
    run_command(main)
