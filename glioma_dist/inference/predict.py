"""Masks for images of any size: a mask and an overlay for each, and one table of the covered shares."""

from __future__ import annotations

import csv
import glob
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch

from glioma_dist.config import PredictConfig, Size
from glioma_dist.data.augment import raise_contrast
from glioma_dist.data.sample import IMAGE_SUFFIXES, read_image
from glioma_dist.errors import InputError
from glioma_dist.evaluation.protocol import cell_probability, load_network
from glioma_dist.runtime import Runtime

MASK, OVERLAY = ".mask.png", ".overlay.png"
OUTLINE_COLOUR = (255, 200, 0)
COLUMNS = ("image", "width", "height", "covered_share", "mask", "overlay")


def predict(config: PredictConfig, runtime: Runtime) -> list[dict]:
    """Write `<name>.mask.png` (0 and 255, the image's own size), `<name>.overlay.png` and summary.csv to `config.out`.

    Returns the table's rows. An image that cannot be read does not stop the others; they are named in one InputError
    at the end.
    """
    paths = find_images(config.images)
    names = output_names(paths)
    network, checkpoint = load_network(config.checkpoint, config.scale.rows, runtime)
    group = network.rows
    data = checkpoint.config.data
    input_size = config.input_size or (data.size if data.fit == "resize" else None)
    config.out.mkdir(parents=True, exist_ok=True)
    rows, failures = [], []
    for path, name in list(zip(paths, names, strict=True))[group.data_rank :: group.num_data_groups]:
        try:
            image = raise_contrast(read_image(path), data.raise_contrast)
            height, width = image.shape[:2]
            shares = cell_probability(network, image, input_size, Size(width, height))
        except InputError as error:
            failures.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        if group.rank > 0:
            continue
        mask = (shares >= config.threshold).to(torch.uint8).cpu().numpy()
        rows.append(write_result(config.out, name, path, image, mask))
        print(f"{path}: {100 * rows[-1]['covered_share']:.1f} % covered", flush=True)
    rows = sorted(runtime.gather_objects(rows), key=lambda row: row["image"])
    failures = runtime.gather_objects(failures if group.rank == 0 else [])
    if runtime.is_main:
        write_summary(config.out / "summary.csv", rows)
    if failures:
        raise InputError(f"{len(failures)} of {len(paths)} images left out: {'; '.join(failures)}")
    return rows


def find_images(pattern: str) -> list[Path]:
    """The TIFFs and PNGs of a folder, a single file, or a glob pattern, sorted, without the masks and overlays
    that `predict` writes. Raises InputError where there are none."""
    folder = Path(pattern)
    found = folder.iterdir() if folder.is_dir() else map(Path, glob.glob(pattern, recursive=True))
    images = (path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    paths = sorted(path for path in images if not path.name.endswith((MASK, OVERLAY)))
    if not paths:
        raise InputError(
            f"--images {pattern}: no {', '.join(IMAGE_SUFFIXES)} there; give a folder, a file, or a pattern in quotes"
        )
    return paths


def output_names(paths: list[Path]) -> list[str]:
    """A name for each image's results: its stem, with the folder's name and the ending where stems repeat."""
    candidates = [
        (path.stem, path.name, f"{path.parent.name}_{path.name}", f"{number:05d}_{path.name}")
        for number, path in enumerate(paths)
    ]
    times = Counter(name for names in candidates for name in set(names))
    return [
        next((name for name in names if times[name] == 1), f"image_{number:05d}_{len(paths)}")
        for number, names in enumerate(candidates)
    ]


def write_result(folder: Path, name: str, path: Path, image: np.ndarray, mask: np.ndarray) -> dict:
    """Write mask and overlay; returns the row for summary.csv. image: uint8; mask: (H, W) of 0 and 1."""
    row = {
        "image": str(path),
        "width": mask.shape[1],
        "height": mask.shape[0],
        "covered_share": round(float(mask.mean()), 6),
        "mask": f"{name}{MASK}",
        "overlay": f"{name}{OVERLAY}",
    }
    for file, pixels in ((row["mask"], mask * 255), (row["overlay"], overlay(image, mask)[..., ::-1])):
        if not cv2.imwrite(str(folder / file), pixels):
            raise InputError(f"{folder / file}: cannot be written; is the folder writable, and is there space?")
    return row


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with its cells tinted and outlined. image: uint8 (H, W) or (H, W, 3); mask: (H, W) of 0 and 1.
    Returns uint8 (H, W, 3) RGB."""
    picture = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    tint = (0.85 * picture + 0.15 * np.array(OUTLINE_COLOUR)).astype(np.uint8)
    picture = np.where(mask[..., None] > 0, tint, picture)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(mask.shape) / 1000))
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, OUTLINE_COLOUR, thickness)


def write_summary(path: Path, rows: list[dict]) -> None:
    """The table, one row an image."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
