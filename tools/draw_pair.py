"""Draw a picture of README or docs/own_images.md: an image beside the same image with its mask tinted and outlined, two
masks of one image, or a mask beside a plot. tools/own_images_folder.py lays out the files:

    python tools/draw_pair.py --image data/plate_7/images/field_set11.png --mask preds/field_set11.mask.png \\
        --beside growth/together.png --rows 300 880 --width 1500 --out docs/pictures/t98g.jpg
    python tools/draw_pair.py --image data/plate_8/field_set12.png --mask data/plate_8_masks/field_set12_cp_masks.png \\
        --predicted preds/first_try/field_set12.mask.png --rows 300 940 --out docs/pictures/first_try.jpg
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.cli.arguments import parse
from glioma_dist.data.sample import read_image
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.files import write_atomically
from glioma_dist.inference.writers.overlay import overlay

GAP_PX = 8
QUALITY = 85


@dataclass(frozen=True)
class PairConfig:
    """Write a JPEG of two pictures side by side: image and mask, mask and predicted mask, or mask and plot."""

    image: Path
    mask: Path
    """Its mask: every value above 0 is cell."""
    out: Path
    """The picture."""
    predicted: Path | None = None
    """Another mask of the image."""
    beside: Path | None = None
    """A plot, PNG, that is shown in place of the image."""
    rows: tuple[int, int] = (0, 640)
    """The first row that is shown, and the row after the last."""
    width: int = 1400
    """Of the picture, in pixels."""


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask as (H, W) uint8 of 0 and 1. Raises InputError if its height and width are not those of `shape`."""
    mask = read_image(path)
    if mask.shape[:2] != shape[:2]:
        raise InputError(f"{path}: has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}")
    return (mask > 0).astype(np.uint8)


def side_by_side(pictures: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Return two pictures, scaled to `width` pixels together. Each uint8 (H, W) or (H, W, 3)."""
    left, right = (np.repeat(each[..., None], 3, axis=2) if each.ndim == 2 else each for each in pictures)
    both = np.concatenate([left, np.full((left.shape[0], GAP_PX, 3), 255, np.uint8), right], axis=1)
    return cv2.resize(both, (width, round(both.shape[0] * width / both.shape[1])), interpolation=cv2.INTER_AREA)


def main() -> None:
    config = parse(PairConfig)
    rows = slice(*config.rows)
    whole = read_image(config.image)
    image = normalize_intensity(whole, "percentile")[rows]
    masks = [read_mask(path, whole.shape)[rows] for path in (config.mask, config.predicted) if path]
    pictures = [image, *(overlay(image, mask) for mask in masks)]
    if config.beside:
        plot = read_image(config.beside)
        scale = image.shape[0] / plot.shape[0]
        pictures.append(cv2.resize(plot, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    _, jpeg = cv2.imencode(
        ".jpg", side_by_side(pictures[-2:], config.width)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    write_atomically(config.out, jpeg.tobytes())


if __name__ == "__main__":
    run_command(main)
