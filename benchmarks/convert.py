"""Measure the converters on drawn data: images a second on one core, memory that a large JSON takes."""

import json
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from rich.console import Console

from glioma_dist.cli.arguments import parse
from glioma_dist.data.convert.cells import draw_cells
from glioma_dist.data.convert.coco import load_coco
from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.convert.sources import find_livecell
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError

WIDTH, HEIGHT = 704, 520
# A polygon of LIVECell has 57 numbers on average.
NUM_POINTS = 29
# LIVECell's largest JSON, that of its training split.
LARGE_NUM_IMAGES, LARGE_NUM_CELLS = 3_253, 1_000_000


def draw_outline(generator: np.random.Generator, num_points: int) -> list[float]:
    """A cell's outline: a wobbly circle within the image, (x0, y0, x1, y1, …) in pixels, two decimals."""
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    radii = generator.uniform(6, 14) * (1 + 0.2 * np.sin(3 * angles + generator.uniform(0, 6)))
    x = np.clip(generator.uniform(0, WIDTH) + radii * np.cos(angles), 0, WIDTH - 1)
    y = np.clip(generator.uniform(0, HEIGHT) + radii * np.sin(angles), 0, HEIGHT - 1)
    return np.stack([x, y], 1).round(2).ravel().tolist()


def write_json(path: Path, num_images: int, num_cells: int, num_points: int) -> None:
    """Write a COCO file with cells spread evenly over images, one annotation at a time."""
    generator = np.random.default_rng(0)
    # Cells are drawn from a thousand outlines: the file is as large, and written in a tenth of the time.
    outlines = [json.dumps([draw_outline(generator, num_points)]) for _ in range(min(num_cells, 1000))]
    images = [
        {"id": n, "file_name": f"A172_Phase_A1_1_{n:02d}d00h00m_1.tif", "width": WIDTH, "height": HEIGHT}
        for n in range(num_images)
    ]
    with open(path, "w", encoding="utf-8") as file:
        categories = '[{"id": 1, "name": "cell", "supercategory": "cell"}]'
        file.write(f'{{"categories": {categories}, "images": {json.dumps(images)}, "annotations": [')
        for n in range(num_cells):
            separator = ", " if n else ""
            # Each image gets other outlines than the one before, and none twice.
            outline = outlines[(n // num_images + 7 * (n % num_images)) % len(outlines)]
            file.write(
                f'{separator}{{"id": {n}, "image_id": {n % num_images}, "category_id": 1, "iscrowd": 0, '
                f'"area": 300.25, "bbox": [1.5, 2.5, 20.25, 19.75], "segmentation": {outline}}}'
            )
        file.write("]}")


def bench_speed(folder: Path, num_images: int) -> None:
    """Convert drawn images of LIVECell's size with 300 cells each, and print images a second."""
    generator = np.random.default_rng(1)
    write_json(folder / "livecell_coco_train.json", num_images, 300 * num_images, num_points=NUM_POINTS)
    (folder / "images").mkdir()
    for n in range(num_images):
        field = cv2.GaussianBlur(generator.normal(128, 60, (HEIGHT, WIDTH)), (0, 0), 2) + generator.normal(
            0, 4, (HEIGHT, WIDTH)
        )
        path = folder / "images" / f"A172_Phase_A1_1_{n:02d}d00h00m_1.tif"
        tifffile.imwrite(path, field.clip(0, 255).astype(np.uint8), compression="lzw", predictor=True)
    cv2.setNumThreads(1)
    start, start_cpu = time.perf_counter(), time.process_time()
    convert(find_livecell(folder), folder / "shards", "drawn", console=Console(quiet=True))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    print("| images | cells an image | images/s of one core | images/s by the clock |\n|---|---|---|---|")
    print(f"| {num_images} | 300 | {num_images / cpu_seconds:.1f} | {num_images / seconds:.1f} |")


def bench_large_json(folder: Path) -> None:
    """Read and rasterise a JSON as large as LIVECell's, and print the most memory that this process held."""
    path = folder / "livecell_coco_train.json"
    write_json(path, LARGE_NUM_IMAGES, LARGE_NUM_CELLS, num_points=NUM_POINTS)
    start = time.perf_counter()
    coco = load_coco(path)
    loaded = time.perf_counter()
    num_cells = sum(draw_cells(image.cells, HEIGHT, WIDTH).num_cells for image in coco.images)
    drawn = time.perf_counter()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| JSON, MB | images | cells | load, s | rasterise, s | peak memory, GiB |\n|---|---|---|---|---|---|")
    print(
        f"| {path.stat().st_size / 1e6:.0f} | {len(coco.images)} | {num_cells} | {loaded - start:.0f} "
        f"| {drawn - loaded:.0f} | {peak_gib:.2f} |"
    )


@dataclass(frozen=True)
class ConvertBenchConfig:
    """Measure the converters on drawn data."""

    num_images: int = 100
    """How many images of 704x520 with 300 cells each are converted."""
    large_json: bool = False
    """Read and rasterise a JSON of 3,253 images and a million polygons instead."""

    def validate(self) -> None:
        if self.num_images < 1:
            raise InputError(f"--num-images {self.num_images}: give 1 or more")


def bench_convert(config: ConvertBenchConfig) -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        if config.large_json:
            bench_large_json(Path(folder))
        else:
            bench_speed(Path(folder), config.num_images)


if __name__ == "__main__":
    run_command(lambda: bench_convert(parse(ConvertBenchConfig)))
