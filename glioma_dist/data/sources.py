"""Which files make up a data set: the layouts of LIVECell and Glioma C6 as published, and CVAT's export."""

import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from glioma_dist.data.coco import CocoFile
from glioma_dist.data.sample import IMAGE_SUFFIXES
from glioma_dist.data.splits import WHOLE
from glioma_dist.errors import InputError

LIVECELL_LICENCE = "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/)"
LIVECELL_CITATION = "Edlund et al. 2021, Nature Methods 18, doi 10.1038/s41592-021-01249-6"
UNKNOWN_LICENCE = "unknown; see the data's publisher"
SPLIT_NAMES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}
# A172_Phase_B7_2_00d04h00m_2.tif: line, well, field, time since the start, part of the field.
LIVECELL_NAME = re.compile(r"(?P<line>[^_]+)_Phase_(?P<well>[A-Z]\d+)_\d+_(?P<d>\d+)d(?P<h>\d+)h(?P<m>\d+)m")


class ImageFolder:
    """The TIFF and PNG files below `root`, listed once; `source` is the folder that none may lead out of."""

    def __init__(self, root: Path, source: Path) -> None:
        self.root = root
        self._source = source.resolve()
        self._refuse_outside(root, str(root))
        self.files: list[Path] = []
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(IMAGE_SUFFIXES):
                    self.files.append(Path(folder, name))
                    self._by_name[name].append(self.files[-1])

    def locate(self, file_name: str, is_only_one: bool) -> list[Path]:
        """The files that a name in a JSON may mean: none, one, or several that cannot be told apart.

        is_only_one: whether no other image of the JSON has the same name without its folder; then a file in
        another folder than named is taken too. Raises InputError for a name that leads out of the source.
        """
        name = PurePosixPath(file_name)
        if name.is_absolute() or ".." in name.parts or PureWindowsPath(file_name).drive:
            raise InputError(f"{file_name!r} leads outside the source folder {self._source}; mend the JSON")
        self._refuse_outside(self.root / name, file_name)
        candidates = self._by_name.get(name.name, [])
        exact = [path for path in candidates if path == self.root / name]
        ending = [path for path in candidates if path.as_posix().endswith(f"/{name}")]
        candidates = exact or ending or (candidates if is_only_one and len(candidates) == 1 else [])
        for path in candidates:
            self._refuse_outside(path, file_name)
        return candidates

    def _refuse_outside(self, path: Path, name: str) -> None:
        try:
            inside = path.resolve().is_relative_to(self._source)
        except (OSError, ValueError):
            raise InputError(f"{name[:120]!r} cannot be the name of a file; mend the JSON") from None
        if not inside:
            raise InputError(f"{name!r} leads outside the source folder {self._source} (by a link); copy it there")


@dataclass(frozen=True)
class SourceSplit:
    """A split of a data set: its name, its COCO file, and the folder that its images are in."""

    name: str
    annotations: Path
    images: ImageFolder


@dataclass(frozen=True)
class Source:
    """A data set as found. licence: None where it is to be read from its files; see `licence_of`.

    has_own_splits: whether its authors divided it; otherwise its one split is named `all`.
    """

    folder: Path
    splits: list[SourceSplit]
    has_own_splits: bool = True
    licence: str | None = None
    citation: str | None = None


def find_livecell(source: str | Path) -> Source:
    """LIVECell: `livecell_coco_{train,val,test}.json`, whichever are there, and its images in any folders.

    Raises InputError, with what was looked for and found, where there is none.
    """
    folder = _existing(source)
    files = {}
    for split in ("train", "val", "test"):
        candidates = list(folder.rglob(f"livecell_coco_{split}.json"))
        if candidates:
            # The authors also publish files for single cell types and parts of the data, further down.
            depth = min(len(path.parts) for path in candidates)
            highest = sorted(path for path in candidates if len(path.parts) == depth)
            preferred = [path for path in highest if path.parent.name == "LIVECell"] or highest
            if len(preferred) > 1:
                raise InputError(f"{preferred[0]} and {preferred[1]}: which one is meant? Keep one in {folder}")
            files[split] = preferred[0]
    if not files:
        raise _not_found(folder, "LIVECell", "livecell_coco_train.json, _val.json or _test.json")
    images = _images(folder / "images" if (folder / "images").is_dir() else folder, folder)
    splits = [SourceSplit(name, path, images) for name, path in files.items()]
    return Source(folder, splits, licence=LIVECELL_LICENCE, citation=LIVECELL_CITATION)


def find_glioma_c6(source: str | Path) -> Source:
    """Glioma C6 as published, any folder of it, or any data set that CVAT exported as COCO.

    Published: `anno_<split>.json` with a folder `images` beside it or in `<split>/`. CVAT:
    `annotations/instances_<subset>.json` with `images/<subset>/`; a single subset `default` becomes the split
    `all`. Raises InputError, with what was looked for and found, where there is neither.
    """
    folder = _existing(source)
    published = sorted(folder.rglob("anno_*.json"))
    exported = sorted(path for path in folder.rglob("instances_*.json") if path.parent.name == "annotations")
    if published and exported:
        raise InputError(f"{folder}: holds {published[0]} and {exported[0]}, two layouts; name the folder of one")
    if not published and not exported:
        wanted = "anno_train.json (published archive) or annotations/instances_*.json (CVAT, COCO 1.0)"
        raise _not_found(folder, "Glioma C6", wanted)
    if published:
        return Source(folder, _named_splits(folder, published, _published_images))
    if [path.name for path in exported] == ["instances_default.json"]:
        images = _images(_exported_images(exported[0], "default"), folder)
        return Source(folder, [SourceSplit(WHOLE, exported[0], images)], has_own_splits=False)
    return Source(folder, _named_splits(folder, exported, _exported_images))


def licence_of(source: Source, coco: CocoFile) -> str:
    """The licence known for the data set, or that in its JSON, or the first line of its LICENSE file."""
    if source.licence:
        return source.licence
    if coco.licences:
        return ", ".join(coco.licences)
    for path in sorted(source.folder.iterdir()):
        if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE")):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            first = next((line.strip() for line in lines if line.strip()), "")
            return f"{first[:120]} ({path.name} of the source)"
    return UNKNOWN_LICENCE


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


def _named_splits(folder: Path, files: list[Path], images_of: Callable[[Path, str], Path]) -> list[SourceSplit]:
    """Splits named after what follows `anno_` or `instances_`, in the order train, val, test, others."""
    splits: dict[str, SourceSplit] = {}
    for path in files:
        subset = path.stem.split("_", 1)[1]
        name = re.sub(r"[^a-z0-9_-]", "_", subset.lower()) or WHOLE
        name = SPLIT_NAMES.get(name, name)
        if name in splits:
            other = splits[name].annotations
            raise InputError(f"{other} and {path}: both are the split {name}; name the folder of one of them")
        splits[name] = SourceSplit(name, path, _images(images_of(path, subset), folder))
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
        raise InputError(f"{root}: labels were found, but no TIFF or PNG here; put the images beside them")
    return images


def _existing(source: str | Path) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the folder that holds the data set")
    return folder


def _not_found(folder: Path, dataset: str, wanted: str) -> InputError:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    return InputError(f"{folder}: no {dataset} data set: looked for {wanted} here and below; found {found}")
