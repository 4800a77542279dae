"""What sources of labels share: the folder of the images, and which image a file of labels belongs to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from glioma_dist.data.convert.cells import Segmentation
from glioma_dist.data.convert.coco import CocoFile, CocoImage
from glioma_dist.data.convert.image_folder import ImageFolder, spelling, walk_files
from glioma_dist.data.convert.labelling import Labelling
from glioma_dist.data.convert.mask_pairs import stem_of
from glioma_dist.data.convert.sources import Source, SourceSplit
from glioma_dist.data.images.decoding import PICTURE_SUFFIXES
from glioma_dist.data.splits import WHOLE
from glioma_dist.errors import InputError

ReadCells = Callable[[Path, int, int], list[Segmentation]]
"""The cells in a file of labels, for an image of so many rows and columns. Raises InputError."""


def image_folder(root: Path, folder: Path, given: Path | None = None) -> ImageFolder:
    """The images below `root`: TIFF, PNG and JPEG; none may lead out of `folder`, or out of --images where given.

    Raises InputError where there is none.
    """
    images = ImageFolder(root, given or folder, PICTURE_SUFFIXES)
    if not images.files:
        raise InputError(f"{root}: no image (TIFF, PNG or JPEG) there or below; give --images, their folder")
    return images


def one_split(
    folder: Path,
    labels: Path,
    images: ImageFolder,
    load: Callable[[Sequence[str] | None, Labelling], CocoFile],
    why_unlisted: str,
    files: Iterable[Path] = (),
) -> Source:
    """A data set without splits of its own. labels: its file, or the folder of its `files`."""
    split = SourceSplit(WHOLE, labels, images, load, tuple(files))
    return Source(folder, [split], has_own_splits=False, why_unlisted=why_unlisted)


def by_name(
    folder: Path, images: Path | None, kind: str, names_of: Callable[[str], Sequence[str]], read_cells: ReadCells
) -> Source:
    """A folder with a file of labels for each image, found by its name.

    kind: of these files, for messages. names_of: the names, without endings, that the image of a file of labels may
    have; none where the file is something else. Raises InputError where there is no file of labels, or it may belong
    to several images, or an image has two.
    """
    listed = image_folder(images or folder, folder, images)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in listed.files:
        for name in {stem_of(path.name), spelling(path.name)}:
            by_stem[name].append(path)
    found: dict[Path, list[str]] = {}
    for path in walk_files(folder):
        names = [] if path.name.startswith(".") else names_of(path.name)
        if names:
            found[path] = [spelling(each) for each in names]
    if not found:
        raise InputError(f"{folder}: no {kind} there or below; give the folder that holds them")
    entries: dict[str, CocoImage] = {}
    owners: dict[str, Path] = {}
    for path, names in found.items():
        name = _image_of(path, folder, listed, [each for name in names for each in by_stem.get(name, [])], names[0])
        if name in owners:
            raise InputError(f"{owners[name]} and {path.name}: both are labels of {name}; keep one of them")
        owners[name] = path
        entries[name] = CocoImage(name, read_cells=_reader(read_cells, path))
    coco = CocoFile(folder, list(entries.values()), Counter(), set(), [])
    return one_split(folder, folder, listed, lambda *_: coco, f"no {kind} belongs to it", found)


def _image_of(path: Path, folder: Path, listed: ImageFolder, images: list[Path], name: str) -> str:
    """The image of a file of labels, as a path within the folder of the images; a name that none has where there is
    none. The image in the same subfolder comes first, and one that is no JPEG, which may be a preview."""
    below = path.parent.relative_to(folder)
    same = [each for each in images if each.parent.relative_to(listed.root) == below]
    chosen = list(dict.fromkeys(same or images))
    chosen = [each for each in chosen if each.suffix.lower() not in (".jpg", ".jpeg")] or chosen
    if len(chosen) > 1:
        raise InputError(f"{path}: labels of {chosen[0]} or of {chosen[1]}? Keep one of them, or name them otherwise")
    return chosen[0].relative_to(listed.root).as_posix() if chosen else (below / name).as_posix()


def _reader(read_cells: ReadCells, path: Path) -> Callable[[int, int], list[Segmentation]]:
    return lambda height, width: read_cells(path, height, width)
