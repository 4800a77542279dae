"""Which files make up a data set: the layouts of LIVECell and Glioma C6 as published, and CVAT's export."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path, PurePosixPath

from glioma_dist.data.advice import ARCHIVES, data_folder
from glioma_dist.data.convert.coco import CocoFile, load_coco
from glioma_dist.data.convert.image_folder import ImageFolder, walk_files
from glioma_dist.data.convert.labelling import PLAIN, Labelling
from glioma_dist.data.images.decoding import IMAGE_SUFFIXES
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.splits import WHOLE
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.files import cannot_read, check_plain, read_bytes
from glioma_dist.registry import BrokenEntryError

LIVECELL_LICENCE = "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/)"
LIVECELL_CITATION = "Edlund et al. 2021, Nature Methods 18, doi 10.1038/s41592-021-01249-6"
GLIOMA_C6_LICENCE = (
    "CC BY-NC 4.0 (says the archive, https://doi.org/10.5281/zenodo.17352019) or CC BY-NC-ND 4.0 (says the paper, "
    "https://arxiv.org/abs/2511.07286)"
)
GLIOMA_C6_CITATION = "Malashin et al. 2025, arXiv 2511.07286; data: doi 10.5281/zenodo.17352019"
GLIOMA_C6_PARTS = {"spec", "gen"}
"""Folders of the published archive, which no other data set of the same layout is likely to have."""
MAX_LICENCE_BYTES = 2**20
MAX_LICENCE_CHARACTERS = 1000
UNKNOWN_LICENCE = "unknown; see the data's publisher"
SPLIT_NAMES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}
# A172_Phase_B7_2_00d04h00m_2.tif: line, well, field, time since the start, part of the field.
LIVECELL_NAME = re.compile(r"(?P<line>[^_]+)_Phase_(?P<well>[A-Z]\d+)_\d+_(?P<d>\d+)d(?P<h>\d+)h(?P<m>\d+)m")


@dataclass(frozen=True)
class SourceSplit:
    """A split of a data set: its name, the file or folder of its labels, and the folder that its images are in.

    load: reads the labels, for the names of the categories that are cells (None: all) and what is made of them; None:
    `annotations` is a COCO file. files: all files that hold labels.
    """

    name: str
    annotations: Path
    images: ImageFolder
    load: Callable[[Sequence[str] | None, Labelling], CocoFile] | None = None
    files: tuple[Path, ...] = ()

    @property
    def label_files(self) -> tuple[Path, ...]:
        """The files that hold labels."""
        return self.files or (self.annotations,)

    def read_labels(self, chosen: Sequence[str] | None, labelling: Labelling = PLAIN) -> CocoFile:
        """The images with their cells. chosen, labelling: see `load_coco`. Raises InputError."""
        return load_coco(self.annotations, chosen, labelling) if self.load is None else self.load(chosen, labelling)


@dataclass(frozen=True)
class Source:
    """A data set as found. licence: None where it is to be read from its files; see `licence_of`.

    has_own_splits: whether its authors divided it; otherwise its one split is named `all`. why_unlisted: why an image
    may be without labels, for the audit. reader: reads label images; the conversion closes it.
    """

    folder: Path
    splits: list[SourceSplit]
    has_own_splits: bool = True
    licence: str | None = None
    citation: str | None = None
    why_unlisted: str = "named in none of the JSONs"
    reader: ImageReader | None = None

    def changed(self, split: str, licence: str | None) -> Source:
        """The same with the name of its one split, if it has no splits of its own, and with the licence, if given."""
        splits = self.splits if self.has_own_splits else [replace(each, name=split) for each in self.splits]
        return replace(self, splits=splits, licence=licence or self.licence)


def find_livecell(source: str | Path, images: Path | None = None) -> Source:
    """LIVECell: `livecell_coco_{train,val,test}.json`, whichever are there, and its images in any folders.

    Raises InputError, with what was looked for and found, where there is none.
    """
    folder = data_folder(source)
    found, files = walk_files(folder), {}
    for split in ("train", "val", "test"):
        candidates = [path for path in found if path.name == f"livecell_coco_{split}.json"]
        if candidates:
            # The authors also publish files for single cell types and parts of the data, further down.
            depth = min(len(path.parts) for path in candidates)
            highest = sorted(path for path in candidates if len(path.parts) == depth)
            preferred = [path for path in highest if path.parent.name == "LIVECell"] or highest
            if len(preferred) > 1:
                raise InputError(f"{preferred[0]} and {preferred[1]}: which one is meant? Keep one in {folder}")
            files[split] = preferred[0]
    if not files:
        raise _not_found(folder, found, "LIVECell", "livecell_coco_train.json, _val.json or _test.json")
    root = images or (folder / "images" if (folder / "images").is_dir() else folder)
    listed = _images(root, images or folder)
    splits = [SourceSplit(name, path, listed) for name, path in files.items()]
    return Source(folder, splits, licence=LIVECELL_LICENCE, citation=LIVECELL_CITATION)


def find_glioma_c6(source: str | Path, images: Path | None = None) -> Source:
    """Glioma C6 as published, any folder of it, or any data set that CVAT exported as COCO.

    Published: `anno_<split>.json` with a folder `images` beside it or in `<split>/`. CVAT:
    `annotations/instances_<subset>.json` with `images/<subset>/`; a single subset `default` becomes the split
    `all`. Raises InputError, with what was looked for and found, where there is neither.
    """
    folder = data_folder(source)
    found = walk_files(folder)
    published = sorted(path for path in found if fnmatch(path.name, "anno_*.json"))
    exported = sorted(
        path for path in found if fnmatch(path.name, "instances_*.json") and path.parent.name == "annotations"
    )
    if published and exported:
        raise InputError(f"{folder}: holds two layouts ({published[0]} and {exported[0]}); give the folder of one")
    if not published and not exported:
        wanted = "anno_train.json (published archive) or annotations/instances_*.json (CVAT, COCO 1.0)"
        raise _not_found(folder, found, "Glioma C6", wanted)
    if published:
        splits = _named_splits(folder, published, _published_images, images)
        if all(GLIOMA_C6_PARTS & set(path.absolute().parts[-3:-1]) for path in published):
            return Source(folder, splits, licence=GLIOMA_C6_LICENCE, citation=GLIOMA_C6_CITATION)
        return Source(folder, splits)
    if [path.name for path in exported] == ["instances_default.json"]:
        listed = _images(images or _exported_images(exported[0], "default"), images or folder)
        return Source(folder, [SourceSplit(WHOLE, exported[0], listed)], has_own_splits=False)
    return Source(folder, _named_splits(folder, exported, _exported_images, images))


def find_coco(annotations: Path, images: Path, split: str = WHOLE, licence: str | None = None) -> Source:
    """A COCO file and the folder of its images, as one split. licence: where None, that of the file or the folder.

    Raises InputError where the file is none, or the folder holds no image.
    """
    folder = data_folder(images)
    check_plain(annotations, os.stat(annotations))
    splits = [SourceSplit(split, annotations, _images(folder, folder))]
    return Source(folder, splits, has_own_splits=False, licence=licence)


def check_found(found: object, described: str) -> Source:
    """What the function of a source returned. Raises BrokenEntryError where it is no `Source`."""
    if not isinstance(found, Source):
        raise BrokenEntryError(f"source {described}: returned a {type(found).__name__}, not a Source; correct it")
    return found


def licence_of(source: Source, coco: CocoFile) -> str:
    """The licence known for the data set, or that in its JSON, or the first line of its LICENSE file."""
    if source.licence:
        return source.licence
    if coco.licences:
        return one_line(", ".join(coco.licences), MAX_LICENCE_CHARACTERS) or UNKNOWN_LICENCE
    return licence_in(source.folder)


def licence_in(folder: Path) -> str:
    """The first line of the LICENSE file of a folder, or that the licence is unknown."""
    for path in licence_files(folder):
        text = read_bytes(path, MAX_LICENCE_BYTES).decode("utf-8", "replace")
        first = next((line.strip() for line in text.split("\n") if line.strip()), "")
        return f"{one_line(first, 120)} ({printable(path.name)} of the source)"
    return UNKNOWN_LICENCE


def licence_files(folder: Path) -> list[Path]:
    """The LICENSE files at the top of a source."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise cannot_read(folder, error) from None
    return [path for path in paths if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE"))]


def describe(file_name: str) -> tuple[str, float | None]:
    """What an image's name tells: its group for splits without leaks, and its time in hours or None.

    Images of one line and well (LIVECell) show the same cells again and again and are one group; an image
    whose name tells nothing is a group of its own.
    """
    stem = PurePosixPath(file_name).stem
    match = LIVECELL_NAME.match(stem)
    if match is None:
        return stem, None
    hours = int(match["d"]) * 24 + int(match["h"]) + int(match["m"]) / 60
    return f"{match['line']}_{match['well']}", hours


def _named_splits(
    folder: Path, files: list[Path], images_of: Callable[[Path, str], Path], images: Path | None
) -> list[SourceSplit]:
    """Splits named after what follows `anno_` or `instances_`, in the order train, val, test, others. images: the
    folder of all images, where it is given."""
    splits: dict[str, SourceSplit] = {}
    for path in files:
        subset = path.stem.split("_", 1)[1]
        name = re.sub(r"[^a-z0-9_-]", "_", subset.lower()) or WHOLE
        name = SPLIT_NAMES.get(name, name)
        if name in splits:
            other = splits[name].annotations
            raise InputError(f"{other} and {path}: both are the split {name}; name the folder of one of them")
        splits[name] = SourceSplit(name, path, _images(images or images_of(path, subset), images or folder))
    order = ["train", "val", "test"]
    return sorted(splits.values(), key=lambda split: ([*order, split.name]).index(split.name))


def _published_images(annotations: Path, subset: str) -> Path:
    beside = annotations.parent
    folders = [beside / "images", beside / subset / "images", beside / subset]
    return next((folder for folder in folders if folder.is_dir()), beside)


def _exported_images(annotations: Path, subset: str) -> Path:
    base = annotations.parent.parent
    folders = [base / "images" / subset, base / "images"]
    return next((folder for folder in folders if folder.is_dir()), base)


def _images(root: Path, source: Path) -> ImageFolder:
    images = ImageFolder(root, source)
    if not images.files:
        raise InputError(f"{root}: labels were found, but no TIFF or PNG here; put the images here")
    return images


def _not_found(folder: Path, files: list[Path], dataset: str, wanted: str) -> InputError:
    """What was looked for, what was found instead, and how to get the one from the other."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    message = f"{folder}: no {dataset} data set: looked for {wanted} here and below; found {found}"
    suffixes = {path.suffix.lower() for path in files}
    if ".xml" in suffixes:
        advice = "glioma-dist convert cvat reads XML ('CVAT for images 1.1'); or export as 'COCO 1.0', and unpack that"
    elif suffixes & ARCHIVES:
        advice = "unpack the archive first"
    elif ".json" in suffixes:
        advice = "a COCO file is read under these names only: rename yours"
    elif suffixes & set(IMAGE_SUFFIXES):
        advice = (
            "images alone are not enough: a COCO JSON must outline their cells, or glioma-dist convert folder takes "
            "images with masks"
        )
    else:
        return InputError(message)
    return InputError(f"{message}; {advice}")
