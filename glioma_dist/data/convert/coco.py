"""COCO files: images with their cells."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from glioma_dist.data.convert.categories import count_labels, identity, read_categories, unknown_category
from glioma_dist.data.convert.cells import Segmentation, as_segmentation, as_whole
from glioma_dist.data.convert.labelling import PLAIN, Labelling
from glioma_dist.errors import InputError
from glioma_dist.files import RepeatedNameError, read_bytes, unique_names
from glioma_dist.limits import IGNORE

MAX_COCO_BYTES = 2**30
"""LIVECell's largest JSON has 0.6 GB, and takes 2.1 GiB of memory."""


class _Annotation(NamedTuple):
    image_id: str
    category_id: str
    segmentation: Segmentation
    is_crowd: bool


@dataclass
class CocoImage:
    """An image and its cells. sizes: (width, height) of each record of this name; there should be one. classes: the
    class number of each cell. ignored: regions whose pixels are ignored.

    read_cells: adds to these what is read, or made of shapes, when the image's turn comes: called with its height and
    width; raises InputError. group: of images that belong to one split; None: what the name tells. frame: the place in
    time, from 1, where the source tells it; hours: the time, if it does.
    """

    file_name: str
    sizes: list[tuple[int, int]] = field(default_factory=list)
    cells: list[Segmentation] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    ignored: list[Segmentation] = field(default_factory=list)
    read_cells: Callable[[int, int], list[Segmentation]] | None = None
    group: str | None = None
    frame: int | None = None
    hours: float | None = None

    @property
    def may_have_cells(self) -> bool:
        """Whether there are cells, or something to read them from."""
        return bool(self.cells) or self.read_cells is not None

    def cells_in(self, height: int, width: int) -> list[Segmentation]:
        """All cells of the image, of so many pixels. Raises InputError."""
        return self.cells if self.read_cells is None else [*self.cells, *self.read_cells(height, width)]

    def add(self, segmentation: Segmentation, number: int) -> None:
        """Add a cell of a class, or a region to ignore."""
        if number == IGNORE:
            self.ignored.append(segmentation)
        else:
            self.cells.append(segmentation)
            self.classes.append(number)


@dataclass
class CocoFile:
    """A COCO file's content.

    orphans: number of annotations for each image id that no image has. shared_ids: file names of images that
    share their id with another: whose cells are whose cannot be told. licences: their names, if it gives any.
    categories: each with its name, its number of `labels`, whether they are `taken` as cells, and `why`. unknown: ids
    of categories that labels have and the file does not define. num_crowds: labels taken that say `iscrowd` 1.
    """

    path: Path
    images: list[CocoImage]
    orphans: Counter
    shared_ids: set[str]
    licences: list[str]
    categories: list[dict] = field(default_factory=list)
    unknown: Counter = field(default_factory=Counter)
    num_crowds: int = 0


def load_coco(path: str | Path, chosen: Sequence[str] | None = None, labelling: Labelling = PLAIN) -> CocoFile:
    """Read a COCO file; records of one file name become one image.

    chosen: names of the categories that are cells; None: all but parts of cells and those that by their name are none.
    labelling: which are classes and which are ignored.
    Annotations are taken apart while they are parsed: a million polygons then take about two gigabytes. Raises
    InputError where the file is missing, too large, no plain file, no JSON or no COCO file.
    """
    path = Path(path)
    content = _read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise InputError(f"{path}: no COCO file: it lacks a list `images` or a list `annotations`")
    chosen = labelling.chosen(chosen)
    images, by_id, shared_ids = _read_images(content["images"])
    try:
        records = _values(content.get("categories"))
        categories = read_categories(records, chosen, labelling.takes, labelling.class_of)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    coco = CocoFile(path, list(images.values()), Counter(), shared_ids, _licences(content))
    labels: Counter = Counter()
    for annotation in _values(content["annotations"]):
        if not isinstance(annotation, _Annotation):
            coco.orphans["(none given)"] += 1
            continue
        number = annotation.category_id
        labels[number] += 1
        if number not in categories:
            categories[number] = unknown_category(number, chosen)
            coco.unknown[number] = 0
        if number in coco.unknown:
            coco.unknown[number] += 1
        if annotation.image_id not in by_id:
            coco.orphans[annotation.image_id] += 1
        elif categories[number].taken:
            number = labelling.class_of(categories[annotation.category_id].name, annotation.is_crowd)
            by_id[annotation.image_id].add(annotation.segmentation, number)
            coco.num_crowds += annotation.is_crowd
    coco.categories = count_labels(categories, labels)
    return coco


def _read_json(path: Path) -> object:
    data = read_bytes(path, MAX_COCO_BYTES)
    try:
        # The bytes are let go before the text is parsed.
        text = data.decode("utf-8-sig")
        del data
        return json.loads(text, object_pairs_hook=lambda pairs: _compact(unique_names(pairs)))
    except RecursionError:
        raise InputError(f"{path}: is no JSON that can be read (nested too deeply); export it again") from None
    except RepeatedNameError as error:
        raise InputError(f"{path}: {error}; keep one of them, or export it again") from None
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({str(error)[:80]}); export it again") from None


def _read_images(records: object) -> tuple[dict[str, CocoImage], dict[str, CocoImage], set[str]]:
    """Images by file name and by id, and the file names of those that share an id."""
    images: dict[str, CocoImage] = {}
    by_id: dict[str, CocoImage] = {}
    shared_ids = set()
    for record in _values(records):
        if not isinstance(record, dict):
            continue
        name = str(record.get("file_name", "")).replace("\\", "/")
        image = images.setdefault(name, CocoImage(name))
        image.sizes.append((as_whole(record.get("width")), as_whole(record.get("height"))))
        other = by_id.setdefault(identity(record.get("id")), image)
        if other is not image:
            shared_ids |= {other.file_name, image.file_name}
    return images, by_id, shared_ids


def _licences(content: dict) -> list[str]:
    names = [entry.get("name") for entry in _values(content.get("licenses")) if isinstance(entry, dict)]
    return [name for name in names if name and isinstance(name, str)]


def _compact(entry: dict) -> dict | _Annotation:
    """Called for each JSON object once it is parsed: makes annotations small and leaves the others alone."""
    if "image_id" not in entry or ("file_name" in entry and "segmentation" not in entry):
        return entry
    segmentation = as_segmentation(entry.get("segmentation"))
    return _Annotation(
        identity(entry["image_id"]), identity(entry.get("category_id")), segmentation, entry.get("iscrowd") in (1, "1")
    )


def _values(container: object) -> list:
    """A list's entries, or those of an object keyed by id."""
    if isinstance(container, dict):
        return list(container.values())
    return container if isinstance(container, list) else []
