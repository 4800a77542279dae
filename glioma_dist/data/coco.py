"""COCO files: images with their cells, and cells as one binary mask."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glioma_dist.data.cells import Segmentation, as_segmentation, as_whole, draw_cells
from glioma_dist.errors import InputError

# What is labelled but no whole cell: it lies inside one that has an outline of its own.
CELL_PART = "cell_part"
SOMA = "soma"


class _Annotation(NamedTuple):
    image_id: str
    category_id: str
    segmentation: Segmentation


@dataclass
class CocoImage:
    """An image and its cells. sizes: (width, height) of each record of this name; there should be one."""

    file_name: str
    sizes: list[tuple[int, int]] = field(default_factory=list)
    cells: list[Segmentation] = field(default_factory=list)


@dataclass
class CocoFile:
    """A COCO file's content.

    orphans: number of annotations for each image id that no image has. shared_ids: file names of images that
    share their id with another: whose cells are whose cannot be told. licences: their names, if it gives any.
    """

    path: Path
    images: list[CocoImage]
    orphans: Counter
    shared_ids: set[str]
    licences: list[str]


def load_coco(path: str | Path) -> CocoFile:
    """Read a COCO file; records of one file name become one image, and parts of cells are left out.

    Annotations are taken apart while they are parsed: a million polygons then take about a gigabyte. Raises
    InputError where the file is missing, is no JSON or no COCO file.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=_compact)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON ({str(error)[:80]}); get the file anew") from None
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise InputError(f"{path}: no COCO file: it lacks a list `images` or a list `annotations`")
    records = [record for record in _values(content["images"]) if isinstance(record, dict)]
    images: dict[str, CocoImage] = {}
    by_id: dict[str, CocoImage] = {}
    shared_ids = set()
    for record in records:
        name = str(record.get("file_name", "")).replace("\\", "/")
        image = images.setdefault(name, CocoImage(name))
        image.sizes.append((as_whole(record.get("width")), as_whole(record.get("height"))))
        other = by_id.setdefault(_identity(record.get("id")), image)
        if other is not image:
            shared_ids |= {other.file_name, image.file_name}
    orphans: Counter = Counter()
    parts = _cell_parts(_values(content.get("categories")))
    for annotation in _values(content["annotations"]):
        if not isinstance(annotation, _Annotation):
            orphans["(none given)"] += 1
        elif annotation.image_id not in by_id:
            orphans[annotation.image_id] += 1
        elif annotation.category_id not in parts:
            by_id[annotation.image_id].cells.append(annotation.segmentation)
    licences = [entry.get("name") for entry in _values(content.get("licenses")) if isinstance(entry, dict)]
    licences = [name for name in licences if name and isinstance(name, str)]
    return CocoFile(path, list(images.values()), orphans, shared_ids, licences)


def union_mask(segmentations: list[Segmentation], height: int, width: int) -> np.ndarray:
    """The union of cells as a mask, uint8 (H, W) of 0 and 1, pixel for pixel that of COCO's `annToMask`.

    Segmentations may be as in a COCO file or as `load_coco` gives them. Raises InputError for one that cannot
    be rasterised; one that encloses nothing adds nothing.
    """
    drawn = draw_cells([as_segmentation(entry) for entry in segmentations], height, width)
    for finding in drawn.findings:
        if finding.spoils:
            raise InputError(f"{finding.kind}: {finding.detail}")
    return drawn.mask


def _compact(entry: dict) -> dict | _Annotation:
    """Called for each JSON object once it is parsed: makes annotations small and leaves the others alone."""
    if "image_id" not in entry:
        return entry
    segmentation = as_segmentation(entry.get("segmentation"))
    return _Annotation(_identity(entry["image_id"]), _identity(entry.get("category_id")), segmentation)


def _identity(value: object) -> str:
    """An id as text, so that 5, 5.0 and "5" are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _values(container: object) -> list:
    """A list's entries, or those of an object keyed by id."""
    if isinstance(container, dict):
        return list(container.values())
    return container if isinstance(container, list) else []


def _cell_parts(categories: list) -> set[str]:
    """Ids of categories that mark a part of a cell."""
    return {
        _identity(category.get("id"))
        for category in categories
        if isinstance(category, dict)
        and (category.get("supercategory") == CELL_PART or str(category.get("name")).strip().lower() == SOMA)
    }
