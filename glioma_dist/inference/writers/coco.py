"""The components as COCO JSON, run-length encoded, which keeps every pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glioma_dist.errors import printable
from glioma_dist.inference.components import Components
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import MARK

CATEGORY = "component covered by cells"
"""A component can be a cell, a part of one, or many that touch."""


class Runs(NamedTuple):
    """Pixels of a component that follow each other down a column, and on in the next. A pixel's place is its number in
    this order, from 0."""

    component: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    """int64, (n,), sorted by component and start."""


def write_coco(path: Path, segmented: SegmentedImage) -> None:
    """Write a COCO file of one image: areas in pixels, and in µm² where the pixel size is known."""
    from pycocotools import mask as coco_mask

    height, width = segmented.shape
    pixel_size = segmented.metadata.pixel_size_um
    image = {"id": 1, "file_name": printable(segmented.image.name), "width": width, "height": height}
    if pixel_size:
        image["pixel_size_um"] = pixel_size
    components = segmented.components
    runs = find_runs(components)
    bounds = np.searchsorted(runs.component, np.arange(1, len(components) + 2))
    head = {
        "info": {"description": "Connected components of a mask", "contributor": MARK},
        "licenses": [],
        "categories": [{"id": 1, "name": CATEGORY, "supercategory": ""}],
        "images": [image],
    }
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for number in range(1, len(components) + 1):
            mine = slice(bounds[number - 1], bounds[number])
            start, stop = runs.start[mine], runs.stop[mine]
            counts = np.diff(np.stack([start, stop], 1).ravel(), prepend=0, append=height * width).tolist()
            counts = counts if counts[-1] else counts[:-1]
            encoded = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
            area = int(components.areas[number - 1])
            annotation = {
                "id": number,
                "image_id": 1,
                "category_id": 1,
                "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
                "area": area,
                "bbox": _bounding_box(start, stop, height),
                "iscrowd": 0,
            }
            if pixel_size:
                annotation["area_um2"] = round(area * pixel_size**2, 3)
            file.write(("," if number > 1 else "") + "\n" + json.dumps(annotation))
        file.write("\n]}\n")


def find_runs(components: Components) -> Runs:
    """Find the runs of all components."""
    height, parts = components.height, []
    for first, labels in components.blocks():
        padded = np.zeros((components.width, len(labels) + 2), np.int32)
        padded[:, 1:-1] = labels.T
        column, start = np.nonzero((padded[:, 1:] > 0) & (padded[:, :-1] == 0))
        _, stop = np.nonzero((padded[:, 1:] == 0) & (padded[:, :-1] > 0))
        place = column.astype(np.int64) * height + first
        parts.append((padded[column, start + 1].astype(np.int64), place + start, place + stop))
    component, start, stop = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.lexsort((start, component))
    component, start, stop = component[order], start[order], stop[order]
    # Runs that were cut by the border of two blocks, or by the end of a column, are one.
    begins = np.ones(len(start), bool)
    begins[1:] = (component[1:] != component[:-1]) | (start[1:] != stop[:-1])
    ends = np.append(begins[1:], True)[: len(start)]
    return Runs(component[begins], start[begins], stop[ends])


def _bounding_box(start: np.ndarray, stop: np.ndarray, height: int) -> list[int]:
    """COCO's x, y, width, height of a component's runs."""
    left, right = int(start[0] // height), int((stop[-1] - 1) // height)
    last = stop - 1
    if (start // height != last // height).any():  # a run over the end of a column touches both edges
        return [left, 0, right - left + 1, height]
    top, bottom = int((start % height).min()), int((last % height).max())
    return [left, top, right - left + 1, bottom - top + 1]
