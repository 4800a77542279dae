"""Folders of the Cell Tracking Challenge: images in 01, 02, …; labels in 01_GT/SEG (gold truth) or 01_ST/SEG (silver).

A sequence is a group. Of a frame that is labelled only in part, which gold truth often is, the markers of 01_GT/TRA
tell: each cell has one. Naming: https://celltrackingchallenge.net/datasets
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from glioma_dist.data.convert.cells import Segmentation
from glioma_dist.data.convert.coco import CocoFile, CocoImage
from glioma_dist.data.convert.image_folder import walk_files
from glioma_dist.data.convert.labelled import image_folder, one_split
from glioma_dist.data.convert.shapes import cells_of_labels
from glioma_dist.data.convert.sources import Source
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.images.worker import Wanted
from glioma_dist.errors import InputError

MARKERS = re.compile(r"man_track\d{1,9}\.tif", re.ASCII)
LABELS = re.compile(r"man_seg_?(?P<frame>\d{1,9})(?P<slice>_\d+)?\.tif", re.ASCII)
SEQUENCE = re.compile(r"(?P<number>\d{2,9})_(?P<kind>GT|ST)", re.ASCII)


def find_gold(folder: Path, images: Path | None = None) -> Source:
    """The frames with gold truth: labels by people. Raises InputError."""
    return _find(folder, images, "GT")


def find_silver(folder: Path, images: Path | None = None) -> Source:
    """The frames with silver truth: labels that several programs agreed on. Raises InputError."""
    return _find(folder, images, "ST")


def _find(folder: Path, images: Path | None, kind: str) -> Source:
    root = images or folder
    reader = ImageReader()  # another one than that of the images, which is always one image ahead
    entries: list[CocoImage] = []
    files: list[Path] = []
    labels: dict[str, Path] = {}
    has_markers = cache(_has_markers)  # of this search only: files may come before the next one
    for path in walk_files(folder):
        sequence, found = SEQUENCE.fullmatch(path.parent.parent.name), LABELS.fullmatch(path.name)
        if path.parent.name != "SEG" or sequence is None or found is None or sequence["kind"] != kind:
            continue
        if found["slice"]:
            raise InputError(f"{path}: labels of one slice of a volume; only data sets of one plane are read")
        above = path.parent.parent.parent
        name = (above.relative_to(folder) / sequence["number"] / f"t{found['frame']}.tif").as_posix()
        if labels.setdefault(name, path) != path:
            raise InputError(f"{labels[name]} and {path.name}: both are labels of {name}; keep one of them")
        markers = above / f"{sequence['number']}_GT" / "TRA" / f"man_track{found['frame']}.tif"
        read = partial(_read_cells, reader, path, markers if has_markers(markers.parent) else None)
        group = name.rpartition("/")[0]
        entries.append(CocoImage(name, read_cells=read, group=group, frame=int(found["frame"]) + 1))
        files += [path, markers]
    if not entries:
        wanted = f"01_{kind}/SEG/man_seg000.tif"
        raise InputError(f"{folder}: no labels of the Cell Tracking Challenge ({wanted}) here or below")
    listed = image_folder(root, folder, images)
    taken = {*files, *(path for path in listed.files if SEQUENCE.fullmatch(path.parent.parent.name))}
    listed.files = [path for path in listed.files if path not in taken]
    coco = CocoFile(folder, entries, Counter(), set(), [])
    return replace(one_split(folder, folder, listed, lambda *_: coco, "has no labels", taken), reader=reader)


def _has_markers(folder: Path) -> bool:
    return any(MARKERS.fullmatch(name) for name in (os.listdir(folder) if folder.is_dir() else ()))


def _read_cells(reader: ImageReader, path: Path, markers: Path | None, height: int, width: int) -> list[Segmentation]:
    """The cells of a label image. Raises InputError where it cannot be read, or some cells have only a marker.

    markers: their file; None where no frame of the sequence has one."""
    labels = _numbers(reader, path, height, width)
    if markers is not None:
        if not markers.is_file():
            raise InputError(
                f"{markers}: is missing, and other frames have theirs: nobody can tell whether all cells are outlined"
            )
        marked = _numbers(reader, markers, height, width)
        missing = np.setdiff1d(marked, marked[labels > 0])
        if missing.any():
            raise InputError(f"{path}: {np.count_nonzero(missing)} cells have a marker in TRA and no outline here")
    return cells_of_labels(labels)


def _numbers(reader: ImageReader, path: Path, height: int, width: int) -> np.ndarray:
    labels = reader.read(Wanted(path, is_mask=True, keeps_values=True)).pixels
    if labels.shape != (height, width):
        raise InputError(f"{path}: is {labels.shape[1]}x{labels.shape[0]}, its image {width}x{height}")
    return labels
