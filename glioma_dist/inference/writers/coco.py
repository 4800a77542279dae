"""The regions as COCO JSON, run-length encoded, which keeps every pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glioma_dist.config.paths import Url
from glioma_dist.data.images.ome_zarr import is_zarr
from glioma_dist.errors import printable
from glioma_dist.inference.regions import Regions
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import MARK

CATEGORIES = {False: "component covered by cells", True: "cell"}
"""Where the network tells one class: of components, each of which can be a cell, a part of one, or many that touch; and
of separated cells."""


class Runs(NamedTuple):
    """Pixels of a region that follow each other down a column, and on in the next. A pixel's place is its number in
    this order, from 0."""

    region: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    """int64, (n,), sorted by region and start."""


def write_coco(path: Path, segmented: SegmentedImage) -> None:
    """Write a COCO file of one image: areas in pixels, and in µm² where the pixel size is known."""
    from pycocotools import mask as coco_mask

    height, width = segmented.shape
    pixel_size = segmented.metadata.pixel_size_um
    image = {"id": 1, "file_name": printable(_file_name(segmented.image)), "width": width, "height": height}
    if pixel_size:
        image["pixel_size_um"] = pixel_size
    regions = segmented.regions
    runs = find_runs(regions)
    bounds = np.searchsorted(runs.region, np.arange(1, len(regions) + 2))
    kind = "Separated cells" if segmented.are_cells else "Connected components of a mask"
    names = segmented.classes or (CATEGORIES[segmented.are_cells],)
    head = {
        "info": {"description": kind, "contributor": MARK},
        "licenses": [],
        "categories": [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(names, 1)],
        "images": [image],
    }
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for number in range(1, len(regions) + 1):
            mine = slice(bounds[number - 1], bounds[number])
            start, stop = runs.start[mine], runs.stop[mine]
            counts = np.diff(np.stack([start, stop], 1).ravel(), prepend=0, append=height * width).tolist()
            counts = counts if counts[-1] else counts[:-1]
            encoded = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
            area = int(regions.areas[number - 1])
            annotation = {
                "id": number,
                "image_id": 1,
                "category_id": int(regions.classes[number - 1]),
                "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
                "area": area,
                "bbox": _bounding_box(start, stop, height),
                "iscrowd": 0,
            }
            if pixel_size:
                annotation["area_um2"] = round(area * pixel_size**2, 3)
            file.write(("," if number > 1 else "") + "\n" + json.dumps(annotation))
        file.write("\n]}\n")


def _file_name(image: Path | Url) -> str:
    """Its name; of an image within an OME-Zarr, as of a well, its path from the Zarr on: each well has an image 0."""
    if isinstance(image, Path) and is_zarr(image):
        for folder in reversed(image.parents):
            if is_zarr(folder):
                return image.relative_to(folder.parent).as_posix()
    return image.name


def find_runs(regions: Regions) -> Runs:
    """Find the runs of all regions."""
    height, parts = regions.height, []
    for first, labels in regions.blocks():
        padded = np.zeros((regions.width, len(labels) + 2), np.int32)
        padded[:, 1:-1] = labels.T
        changes = padded[:, 1:] != padded[:, :-1]
        column, start = np.nonzero((padded[:, 1:] > 0) & changes)
        _, stop = np.nonzero((padded[:, :-1] > 0) & changes)
        place = column.astype(np.int64) * height + first
        parts.append((padded[column, start + 1].astype(np.int64), place + start, place + stop))
    region, start, stop = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.lexsort((start, region))
    region, start, stop = region[order], start[order], stop[order]
    # Runs that were cut by the border of two blocks, or by the end of a column, are one.
    begins = np.ones(len(start), bool)
    begins[1:] = (region[1:] != region[:-1]) | (start[1:] != stop[:-1])
    ends = np.append(begins[1:], True)[: len(start)]
    return Runs(region[begins], start[begins], stop[ends])


def _bounding_box(start: np.ndarray, stop: np.ndarray, height: int) -> list[int]:
    """COCO's x, y, width, height of a region's runs."""
    left, right = int(start[0] // height), int((stop[-1] - 1) // height)
    last = stop - 1
    if (start // height != last // height).any():  # a run over the end of a column touches both edges
        return [left, 0, right - left + 1, height]
    top, bottom = int((start % height).min()), int((last % height).max())
    return [left, top, right - left + 1, bottom - top + 1]
