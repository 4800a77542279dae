"""CVAT's own export, "CVAT for images 1.1": one XML with each image's shapes.

Polygons, masks (painted with the brush) and ellipses are cells. Boxes, lines, points, cuboids and skeletons have no
outline: they are in the audit, as boxes of COCO files are. The format: https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.parsers import expat

import numpy as np

from glioma_dist.data.convert.categories import count_labels, identity, read_categories
from glioma_dist.data.convert.cells import Segmentation, as_segmentation, as_whole
from glioma_dist.data.convert.coco import MAX_COCO_BYTES, CocoFile, CocoImage
from glioma_dist.data.convert.image_folder import walk_files
from glioma_dist.data.convert.labelled import image_folder, one_split
from glioma_dist.data.convert.labelling import PLAIN, Labelling
from glioma_dist.data.convert.shapes import ellipse, pixels_at
from glioma_dist.data.convert.sources import Source
from glioma_dist.errors import InputError
from glioma_dist.files import read_bytes
from glioma_dist.limits import IGNORE

OUTLINES = ("polygon", "mask", "ellipse")
SHAPES = (*OUTLINES, "box", "polyline", "points", "cuboid", "skeleton")
Shape = tuple[str, dict[str, str]]
"""An element's name and attributes."""


def find_cvat(folder: Path, images: Path | None = None) -> Source:
    """The one XML file of an export, `annotations.xml`, and its images. Raises InputError."""
    found = [path for path in walk_files(folder) if path.suffix.lower() == ".xml"]
    found.sort(key=lambda path: (path.name != "annotations.xml", len(path.parts)))
    if not found or (len(found) > 1 and found[0].name != "annotations.xml"):
        which = f"{len(found)} XML files" if found else "no XML file"
        raise InputError(f"{folder}: {which}; give the folder of one unpacked export, with annotations.xml")
    root = image_folder(images or (folder / "images" if (folder / "images").is_dir() else folder), folder, images)
    return one_split(folder, found[0], root, partial(load_cvat, found[0]), "named without a shape in the XML")


def load_cvat(path: Path, chosen: Sequence[str] | None = None, labelling: Labelling = PLAIN) -> CocoFile:
    """Read the XML. chosen, labelling: of names of labels, as `load_coco` takes those of categories. Raises
    InputError."""
    images, shapes = read_shapes(path)
    labels = Counter(identity(shape["label"]) for found in shapes.values() for _, shape in found)
    try:
        records = [{"id": name, "name": name} for name in labels]
        categories = read_categories(records, labelling.chosen(chosen), labelling.takes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    for image in images.values():
        cells, ignored = [], []
        for tag, shape in shapes[image.file_name]:
            category = categories[identity(shape["label"])]
            number = labelling.class_of(category.name, False) if category.taken else 0
            if number == IGNORE:
                ignored.append((tag, shape))
            elif number:
                cells.append((tag, shape))
                image.classes.append(number)
        if cells or ignored:
            image.read_cells = partial(_cells, path, image, cells, ignored)
    return CocoFile(path, list(images.values()), Counter(), set(), [], count_labels(categories, labels))


def read_shapes(path: Path) -> tuple[dict[str, CocoImage], dict[str, list[Shape]]]:
    """The images of an XML, and the shapes of each, by their names. Raises InputError."""
    images: dict[str, CocoImage] = {}
    shapes: dict[str, list[Shape]] = {}
    within: list[str] = []  # the name of the image whose element is open

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "track":
            raise InputError(f"{path}: shapes of a video (tracks); in CVAT, export as 'CVAT for images 1.1'")
        if tag == "image":
            name = attributes.get("name", "").replace("\\", "/")
            image = images.setdefault(name, CocoImage(name))
            image.sizes.append((as_whole(attributes.get("width")), as_whole(attributes.get("height"))))
            within[:] = [name]
        elif within and tag in SHAPES:
            shapes[within[0]].append((tag, {"label": "(no label)", **attributes}))
        if within:
            shapes.setdefault(within[0], [])

    def end(tag: str) -> None:
        if tag == "image":
            within.clear()

    _parse(path, start, end)
    if not images:
        raise InputError(f"{path}: has no element <image>; in CVAT, export as 'CVAT for images 1.1'")
    return images, shapes


def _parse(path: Path, start: object, end: object) -> None:
    """Call `start` and `end` for each element. Documents that declare a type, and with it entities, are refused."""

    def refuse(*_: object) -> None:
        raise InputError(f"{path}: declares a document type, as no export of CVAT does; export it again")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, refuse
    try:
        parser.Parse(read_bytes(path, MAX_COCO_BYTES), True)
    except (expat.ExpatError, ValueError) as error:  # ValueError: an encoding that Python does not know
        raise InputError(f"{path}: is no XML ({str(error)[:80]}); export it again") from None


def _cells(
    path: Path, image: CocoImage, cells: list[Shape], ignored: list[Shape], height: int, width: int
) -> list[Segmentation]:
    try:
        image.ignored = [_cell(*shape, height, width) for shape in ignored]
        return [_cell(*shape, height, width) for shape in cells]
    except (KeyError, ValueError, OverflowError) as error:
        where, reason = f"{path}: {image.file_name[:80]}", f"{type(error).__name__}: {error}"[:120]
        raise InputError(f"{where}: a shape cannot be read ({reason}); export it again") from None


def _cell(tag: str, attributes: dict[str, str], height: int, width: int) -> Segmentation:
    if tag == "polygon":
        return as_segmentation([[number for pair in attributes["points"].split(";") for number in pair.split(",")]])
    if tag == "ellipse":
        x, y, across, down, turn = (float(attributes.get(key, 0)) for key in ("cx", "cy", "rx", "ry", "rotation"))
        return ellipse((x, y), (across, down), turn, height, width)
    if tag != "mask":
        return []
    left, top, columns, rows = (as_whole(float(attributes[key])) for key in ("left", "top", "width", "height"))
    counts = np.array(attributes["rle"].split(","), np.int64)
    if not (0 < columns <= width and 0 < rows <= height and counts.min() >= 0 and counts.max() <= rows * columns):
        raise ValueError(f"a mask of {columns}x{rows} pixels in an image of {width}x{height}")
    if counts.sum() != rows * columns:
        raise ValueError(f"run lengths that do not fill {columns}x{rows} pixels")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(rows, columns)
    return pixels_at(pixels, left, top, height, width)
