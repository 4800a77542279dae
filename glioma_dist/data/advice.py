"""What to do with a folder that holds no shards, or no data set: which command makes shards of what is in it."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from glioma_dist.errors import InputError
from glioma_dist.files import cannot_read

IN_GENERAL = (
    "make shards first: glioma-dist convert folder takes images with masks, convert livecell takes LIVECell, convert "
    "glioma-c6 takes Glioma C6 and what CVAT exports as COCO 1.0, convert coco takes any COCO file, and convert --help "
    "lists more (Fiji, Cellpose, CVAT's XML)"
)
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"}
MOST_FILES = 10_000
"""Looked at: a folder of raw data can hold millions."""
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "raw")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "gt", "ground_truth", "annotations")
"""What people name the two folders."""
OTHER_IMAGE_ENDINGS = (".bmp", ".gif", ".oib", ".oif", ".vsi", ".zvi")
"""Of kinds that are not read."""


def data_folder(source: str | Path) -> Path:
    """The folder of a data set. Raises InputError where there is none."""
    folder = Path(source)
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; name the folder that holds the data set") from None
    except ValueError as error:  # a name with a zero byte
        raise InputError(f"{folder!r}: cannot be the name of a folder ({error})") from None
    except OSError as error:
        raise cannot_read(folder, error) from None
    if not is_folder:
        what = "unpack it, then name the folder" if folder.suffix.lower() in ARCHIVES else "name the folder"
        raise InputError(f"{folder}: is a file, not a folder; {what} that holds the data set")
    return folder


def how_to_make_shards(folder: Path, use: str = "shards") -> str:
    """Advice for a folder without an index.json, as the end of a message. use: what needs masks, such as evaluation."""
    files = list(islice(_files_below(folder), MOST_FILES))
    if any(path.suffix == ".tar" for path in files if path.parent == folder):
        return f"convert again, or for somebody else's tars: glioma-dist shards index {_quoted(folder)}"
    out = f"--out shards/{_quoted(folder.absolute().name)}"
    if any(path.name.startswith("livecell_coco_") and path.suffix == ".json" for path in files):
        return f"make shards first: glioma-dist convert livecell --source {_quoted(folder)} {out}"
    if any(_is_coco(path) for path in files):
        return f"make shards first: glioma-dist convert glioma-c6 --source {_quoted(folder)} {out}"
    from glioma_dist.data.images.decoding import PICTURE_SUFFIXES  # the libraries of images
    from glioma_dist.data.images.microscope import MICROSCOPE_SUFFIXES

    read_endings = (*PICTURE_SUFFIXES, *MICROSCOPE_SUFFIXES)
    images = [path for path in files if path.name.lower().endswith((*read_endings, *OTHER_IMAGE_ENDINGS))]
    if not images:
        return IN_GENERAL
    if not any(path.name.lower().endswith(read_endings) for path in images):
        kinds = ", ".join(sorted({path.suffix.lower() for path in images}))
        return (
            f"there are {len(images)} images ({kinds}) of kinds that are not read: save them as TIFF or PNG, then make "
            "shards of them and their masks with glioma-dist convert folder"
        )
    within = {path.relative_to(folder).parts[0] for path in images if path.parent != folder}
    named = [next((each for each in names if each in within), "") for names in (IMAGE_FOLDERS, MASK_FOLDERS)]
    if all(named):
        places = " ".join(
            f"--{what} {_quoted(folder / name)}" for what, name in zip(("images", "masks"), named, strict=True)
        )
        return f"make shards first: glioma-dist convert folder {places} --split-seed 0 {out}"
    there = f"are more than {len(images)} images" if len(files) == MOST_FILES else f"are {len(images)} images"
    there = "is 1 image" if len(images) == 1 else there
    return (
        f"there {there}, and {use} need{'' if use.endswith('s') else 's'} masks of their "
        f"cells, too: glioma-dist convert folder --images {_quoted(folder)} --masks MASKS --split-seed 0 {out}; "
        "without masks, outline the cells in CVAT, export as COCO 1.0, and use convert glioma-c6"
    )


def _is_coco(path: Path) -> bool:
    """Whether glioma-dist convert glioma-c6 takes a file for one of outlines."""
    exported = path.parent.name == "annotations" and path.name.startswith("instances_")
    return path.suffix == ".json" and (exported or path.name.startswith("anno_"))


def _files_below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in sorted(names))


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
