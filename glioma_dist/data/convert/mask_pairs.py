"""Which mask belongs to which image: by their names, in one folder or two."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from glioma_dist.data.advice import data_folder
from glioma_dist.data.convert.image_folder import spelling, walk_files
from glioma_dist.data.images.decoding import PICTURE_SUFFIXES
from glioma_dist.data.images.microscope import MICROSCOPE_SUFFIXES
from glioma_dist.errors import InputError, printable

KNOWN_SUFFIXES = (
    *("", "_mask", "_masks", "_cp_masks", "_label", "_labels", "_seg", "_segmentation", "_gt"),
    *("-mask", "-masks", "-label", "-labels", "-lbl", "_Simple Segmentation", "_Object Identities"),
)
"""What people and programs write after a name: Cellpose `_cp_masks`, MorphoLibJ `-lbl`, ilastik the last two."""


class Pair(NamedTuple):
    """An image with its mask. name: the image's path within its folder, with `/`; stem: the same without its ending."""

    name: str
    stem: str
    image: Path
    mask: Path


class Pairs(NamedTuple):
    """pairs: by name. suffix: what the masks' names have after the images'. lonely_images, lonely_masks: paths within
    their folders of those without a partner. not_read: other files."""

    pairs: list[Pair]
    suffix: str
    lonely_images: list[str]
    lonely_masks: list[str]
    not_read: list[Path]


def find_pairs(images: Path, masks: Path, suffix: str | None, may_be_one: bool = False) -> Pairs:
    """Find each image's mask: the file of the same path and name, without endings, that has `suffix` after its name.

    suffix: None: the one of `KNOWN_SUFFIXES` that most masks have. Both folders may be one, or one in the other.
    may_be_one: in one folder and without a suffix, each picture is its own mask.
    Raises InputError where a folder cannot be read or holds nothing, nothing belongs together, or an image has two
    masks, or a mask two images.
    """
    is_one = data_folder(images).resolve() == data_folder(masks).resolve()
    files, not_read = _pictures(images, masks)
    other_files, others_not_read = (files, []) if is_one else _pictures(masks, images)
    _refuse_nothing("--images", images, files, "image (TIFF, PNG, JPEG, nd2, czi or lif)")
    _refuse_nothing("--masks", masks, other_files, "mask (TIFF or PNG)", [*not_read, *others_not_read])
    if is_one and may_be_one and not suffix:
        pairs = _pair(files, files, "", images)
        return Pairs(pairs, "", [], [], not_read)
    if is_one and suffix == "":
        raise InputError(f"--suffix '': images and masks are in one folder, {images}; give the end of the masks' names")
    if suffix is None:
        suffix = max(KNOWN_SUFFIXES[is_one:], key=lambda each: len(_partners(files, other_files, each)))
    if is_one:
        ending = spelling(suffix)
        other_files = {stem: paths for stem, paths in files.items() if stem.endswith(ending)}
        files = {stem: paths for stem, paths in files.items() if not stem.endswith(ending)}
    pairs = _pair(files, other_files, suffix, images)
    if not pairs:
        raise _nothing_belongs_together(files, other_files, suffix, is_one)
    used = {path for pair in pairs for path in (pair.image, pair.mask)}
    lonely = [
        sorted(path.relative_to(root).as_posix() for paths in found.values() for path in paths if path not in used)
        # All files of one folder are below `images`, whatever other path `masks` is.
        for found, root in ((files, images), (other_files, images if is_one else masks))
    ]
    return Pairs(pairs, suffix, *lonely, [*not_read, *others_not_read])


def _pictures(root: Path, other: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """The pictures below a folder by their stems, without those of another folder that lies within it; and the rest."""
    other, is_above = other.resolve(), other.resolve() != root.resolve()
    is_above = is_above and other.is_relative_to(root.resolve())
    pictures: dict[str, list[Path]] = defaultdict(list)
    rest = []
    for path in walk_files(root):
        if is_above and path.parent.resolve().is_relative_to(other):
            continue
        # macOS writes a file `._x.tif` beside each x.tif on disks of other systems.
        if path.name.lower().endswith(PICTURE_SUFFIXES) and not path.name.startswith(".") and not path.is_dir():
            pictures[stem_of(path.relative_to(root).as_posix())].append(path)
        else:
            rest.append(path)
    plain = set(pictures)
    for path in [path for path in rest if path.name.lower().endswith(MICROSCOPE_SUFFIXES)]:
        stem = stem_of(path.relative_to(root).as_posix())
        # Beside a TIFF of the same name, it is what the TIFF was saved from.
        if not path.name.startswith(".") and stem not in plain:
            pictures[stem].append(path)
            rest.remove(path)
    return dict(pictures), rest


def stem_of(name: str) -> str:
    """A path without its ending, in one spelling; `.ome.tif` is one ending."""
    path = PurePosixPath(name)
    stem = path.stem
    if path.suffix.lower() in (".tif", ".tiff") and stem.lower().endswith(".ome"):
        stem = stem[: -len(".ome")]
    return spelling((path.parent / stem).as_posix())


def _partners(images: dict[str, list[Path]], masks: dict[str, list[Path]], suffix: str) -> list[str]:
    """Stems of the images that have a mask."""
    return [stem for stem in images if stem + spelling(suffix) in masks]


def _pair(images: dict[str, list[Path]], masks: dict[str, list[Path]], suffix: str, root: Path) -> list[Pair]:
    pairs = []
    for stem in sorted(_partners(images, masks, suffix)):
        found, marked = images[stem], masks[stem + spelling(suffix)]
        for paths, what in ((found, "two images for one mask"), (marked, "two masks for one image")):
            if len(paths) > 1:
                raise InputError(f"{paths[0]} and {paths[1].name}: {what}; keep one of them in the folder")
        pairs.append(Pair(found[0].relative_to(root).as_posix(), stem, found[0], marked[0]))
    return pairs


def _refuse_nothing(flag: str, root: Path, found: dict, what: str, others: list[Path] | None = None) -> None:
    if found:
        return
    if any(path.name.endswith("_seg.npy") for path in others or ()):
        hint = "glioma-dist convert cellpose reads Cellpose's _seg.npy"
    else:
        hint = "give the folder that holds them"
    raise InputError(f"{flag} {root}: no {what} there or below; {hint}")


def _nothing_belongs_together(
    images: dict[str, list[Path]], masks: dict[str, list[Path]], suffix: str, is_one: bool
) -> InputError:
    def two(found: dict[str, list[Path]]) -> str:
        names = sorted(printable(path.name)[:60] for paths in found.values() for path in paths)
        return ", ".join(names[:2])

    if is_one and not masks:
        return InputError(
            f"no file of the folder is named as a mask: {two(images)}; give --suffix, what the masks' names have after "
            "the images' (x.tif, x_mask.png: --suffix _mask), or keep images and masks in two folders"
        )
    ends = f" and {suffix!r}" if suffix else ""
    return InputError(
        f"no mask has the name of an image{ends}: images are {two(images) or 'none'}; masks are {two(masks)}; give "
        "--suffix, what a mask's name has after its image's (x.tif, x_mask.png: --suffix _mask), or rename the masks; "
        "subfolders must have the same names in both folders"
    )
