"""How well the data report finds near-duplicates, by changed copies of fields, and how long its parts take.

    python benchmarks/near_duplicates.py t98g/images/default livecell/images

Prints the tables of docs/guides/data_report.md. No two images may show the same; each has 512x384 pixels or more.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.data.near_duplicates import (
    LEAST_SIMILARITY,
    Sketch,
    find_near_duplicates,
    similarity,
    sketch,
)
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.writer import ShardWriter
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.report.data_samples import examine

SUFFIXES = (".png", ".tif", ".tiff", ".jpg")
TIMED = (1000, 2500)
"""Numbers of images whose pairs are looked for."""


def _jpeg(image: np.ndarray) -> np.ndarray:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


def _noise(image: np.ndarray) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(0, 15, image.shape)
    return np.clip(image + drawn, 0, 255).round().astype(np.uint8)


def _cut(image: np.ndarray, is_at_all_sides: bool) -> np.ndarray:
    down, right = (round(side / 20) for side in image.shape)
    return image[down:-down, right:-right] if is_at_all_sides else image[down:, right:]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "brightness x 0.7, plus 30": lambda image: (0.7 * image + 30).round().astype(np.uint8),
    "gamma 1.6": lambda image: (255 * (image / 255) ** 1.6).round().astype(np.uint8),
    "JPEG of quality 30": _jpeg,
    "cut by 16 pixels at two sides": lambda image: image[16:, 16:],
    "cut by 5 % at two sides": lambda image: _cut(image, False),
    "blurred, sigma 2 pixels": lambda image: cv2.GaussianBlur(image, (0, 0), 2),
    "rotated by 90 degrees": lambda image: np.rot90(image),
    "noise, sigma 15 grey levels": _noise,
    "CLAHE, limit 3": lambda image: cv2.createCLAHE(3, (8, 8)).apply(image),
    "cut by 5 % at all four sides": lambda image: _cut(image, True),
}
"""Name -> what is done to an image, uint8 (H, W)."""


def main(*folders: str) -> None:
    """Print how alike fields and their copies are, and the CPU time of the search."""
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < 2:
        told = " ".join(folders) or "no folder was given"
        raise InputError(f"{told}: give folders with two images or more ({', '.join(SUFFIXES)})")
    images = [read_grey(path) for path in paths]
    sketches = [sketch(image) for image in images]
    num_pairs = len(sketches) * (len(sketches) - 1) // 2
    print("| Pair | Similarity, lowest | Median | Found |\n|---|---:|---:|---:|")
    # The search leaves out what is not alike at first sight; so does `similarity`, which then is 0.
    highest = max(similarity(*pair) for pair in combinations(sketches, 2))
    found = f"{len(find_near_duplicates(sketches)[0])} of {num_pairs:,}"
    print(f"| different fields (the highest: {highest:.2f}) | | | {found} |")
    for name, change in CHANGES.items():
        values = [similarity(one, sketch(change(image))) for one, image in zip(sketches, images, strict=True)]
        num_found = sum(value >= LEAST_SIMILARITY for value in values)
        print(f"| {name} | {min(values):.2f} | {np.median(values):.2f} | {num_found} of {len(images)} |")
    print("\n| Part | CPU time |\n|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(Path(folder) / "all", "d", "all", "l") as writer:
            for number, image in enumerate(images):
                part = np.ascontiguousarray(image[:384, :512])
                writer.write(Sample(f"{number:05d}", part, (part > np.median(part)).astype(np.uint8)))
        reader = ShardReader(Path(folder) / "all")
        for flags, name in (
            (False, "read an image of 512x384 and count its cells"),
            (True, "the same, with the flags of its picture"),
        ):
            seconds = _seconds(lambda flags=flags: list(examine([reader], [flags] * len(images))))
            print(f"| {name} | {1e3 * seconds / len(images):.0f} ms |")
    copies = [sketch(CHANGES["blurred, sigma 2 pixels"](image)) for image in images]
    alike = list(zip(sketches, copies, strict=True))
    for number in TIMED:
        drawn = _draw(number)
        seconds = _seconds(lambda drawn=drawn: find_near_duplicates(drawn))
        print(f"| compare all pairs of {number:,} images at 32x32 pixels | {seconds:.1f} s |")
    seconds = _seconds(lambda: [similarity(*pair) for pair in alike])
    print(f"| compare an alike pair at 128x128 pixels | {1e3 * seconds / len(alike):.0f} ms |")


def read_grey(path: Path) -> np.ndarray:
    """Raises InputError where OpenCV reads nothing."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise InputError(f"{path}: is no image that OpenCV reads")
    return image


def _draw(number: int) -> list[Sketch]:
    """Sketches of noise, of which no two are alike at 32x32 pixels, so that no pair is compared further."""
    generator = np.random.default_rng(0)
    fine = np.zeros((128, 128), np.int8)
    drawn = generator.standard_normal((number, 32, 32)).astype(np.float32)
    return [Sketch(coarse, fine) for coarse in drawn]


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    run_command(lambda: main(*sys.argv[1:]))
