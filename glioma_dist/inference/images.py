"""Which files of what a user names are images to predict, what is not read, and what the results are called."""

from __future__ import annotations

import glob
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glioma_dist.config.paths import Url, path_or_url
from glioma_dist.data.images.decoding import JPEG_SUFFIXES, PICTURE_SUFFIXES
from glioma_dist.data.images.microscope import MICROSCOPE_SUFFIXES
from glioma_dist.data.images.ome_zarr import SUFFIX, is_zarr
from glioma_dist.data.remote_images import list_files
from glioma_dist.errors import InputError, printable
from glioma_dist.files import cannot_read
from glioma_dist.inference.writers.names import is_result_name
from glioma_dist.wording import counted

SUMMARY, FAILED = "summary.csv", "failed.csv"
RECORDS = re.compile(r"predict(-\d{5})?\.json")
"""Files of `inference.record`."""
NUM_SUFFIXES = 5
"""Named in a line; the rest is counted."""


KINDS = {
    "plain": ("file without a suffix not read", "files without a suffix not read"),
    "result": ("result of glioma-dist predict not read", "results of glioma-dist predict not read"),
    "folder": ("folder inside not searched", "folders inside not searched"),
    "closed": ("folder that this user may not read", "folders that this user may not read"),
    "hidden": ("hidden file not read", "hidden files not read"),
    "link": ("link that leads nowhere", "links that lead nowhere"),
    "special": ("pipe, socket or device not read", "pipes, sockets or devices not read"),
}
"""What a path can be that is no image, beside a file of another suffix: one, and several."""


@dataclass(frozen=True)
class Found:
    """The images of a folder, a file or a pattern, sorted; and how many files of which kind are not read."""

    paths: list[Path | Url]
    not_read: Counter[str]

    def describe(self) -> str:
        """Say what is not read, for example "2 files not read (1 .jpg, 1 .czi)"; empty if all is read."""
        suffixes = Counter({name: count for name, count in self.not_read.items() if name.startswith(".")})
        parts = []
        if suffixes:
            named = ", ".join(
                suffix if len(suffixes) == 1 else f"{count} {suffix}"
                for suffix, count in sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))[:NUM_SUFFIXES]
            )
            more = f" and {len(suffixes) - NUM_SUFFIXES} more kinds" if len(suffixes) > NUM_SUFFIXES else ""
            parts.append(f"{counted(suffixes.total(), 'file')} not read ({named}{more})")
        parts += [counted(count, *KINDS[kind]) for kind, count in self.not_read.items() if kind in KINDS]
        return "; ".join(parts)


def find_images(pattern: str) -> Found:
    """Find the TIFFs, PNGs and OME-Zarrs of a folder, a file or a glob pattern. If there is none of these, files of
    microscopes' own programs are used, because beside them TIFFs are usually saved from them. If there is none, either,
    JPEGs are used, because beside others they are usually previews.

    Masks and overlays, which `predict` writes, are no images. Raises InputError where there are none.
    """
    not_read: Counter[str] = Counter()
    place = path_or_url(pattern)
    named = list_files(place) if isinstance(place, Url) else _named_by(pattern, not_read)
    paths = []
    for path in sorted(named):
        if ".zarr/" not in pattern and not isinstance(path, Url) and _is_in_zarr(path):
            continue
        kind = _why_not_by_name(path) if isinstance(path, Url) else _why_not(path)
        is_named = path == place or str(path) == pattern.rstrip("/")  # also as ./NAME, which a path forgets
        if is_named and (kind == "hidden" or (kind == "folder" and is_zarr(path))):
            kind = ""
        if kind == "":
            paths.append(path)
        elif kind != "folder" or "**" not in pattern:  # which does search the folders that it matches
            not_read[kind] += 1
    for others in ((*JPEG_SUFFIXES, *MICROSCOPE_SUFFIXES), JPEG_SUFFIXES):
        main = [path for path in paths if path.suffix.lower() not in others]
        if main:
            not_read.update(path.suffix.lower() for path in paths if path.suffix.lower() in others)
            paths = main
    found = Found(paths, not_read)
    if not paths:
        there = f" ({found.describe()})" if found.describe() else ""
        if not isinstance(place, Url) and not glob.has_magic(pattern) and not os.path.lexists(pattern):
            raise InputError(f"--images {pattern}: no such file or folder; give another, or a pattern in quotes")
        read = ", ".join((*PICTURE_SUFFIXES, *MICROSCOPE_SUFFIXES, SUFFIX))
        raise InputError(f"--images {pattern}: no {read} there{there}; give a folder, a file, or a pattern in quotes")
    return found


def _named_by(pattern: str, not_read: Counter[str]) -> list[Path]:
    """The entries of a folder, or what a pattern matches. Folders that cannot be searched are counted."""
    path = Path(pattern)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return [path] if is_zarr(path) else list(path.iterdir())
        return [path]  # whatever signs of a pattern its name has
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError) and not glob.has_magic(pattern):
            raise cannot_read(f"--images {pattern}", error) from None
    if "**" in pattern:
        # glob passes over folders that it may not read, without a word.
        root = Path(pattern.partition("**")[0] or ".")
        closed: list[OSError] = []
        for _ in os.walk(root if os.path.isdir(root) else root.parent, onerror=closed.append):
            pass
        not_read.update({"closed": len(closed)} if closed else {})
    return [Path(each) for each in glob.glob(_with_literal_folders(pattern), recursive=True)]


def _with_literal_folders(pattern: str) -> str:
    """A pattern whose folders that are there under just this name, such as `plate[1]`, are no patterns."""
    head, *rest = pattern.split("/")
    place = head
    parts = [glob.escape(head) if head and os.path.isdir(head) else head]
    for part in rest:
        place = f"{place}/{part}"
        parts.append(glob.escape(part) if part and os.path.isdir(place) else part)
    return "/".join(parts)


def _is_in_zarr(path: Path) -> bool:
    """Whether a path is part of a Zarr, which `**` searches as any folder."""
    return any(part.lower().endswith(SUFFIX) for part in path.parts[:-1])


def _why_not(path: Path) -> str:
    """Why a path is not read: a key of `KINDS`, or the suffix of what is no image; empty for an image."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "link" if path.is_symlink() else "closed"
    if stat.S_ISDIR(mode):
        if is_result_name(path.name):
            return "result"
        is_image = is_zarr(path) and _why_not_by_name(path) in ("", "plain")
        return "" if is_image else "folder"
    kind = _why_not_by_name(path)
    return "special" if kind != "hidden" and not stat.S_ISREG(mode) else kind


def _why_not_by_name(path: Path | Url) -> str:
    """`_why_not`, as far as the name tells."""
    name = path.name.lower()
    if name.startswith("."):
        return "hidden"
    if is_result_name(name) or name in (SUMMARY, FAILED) or RECORDS.fullmatch(name):
        return "result"
    if path.suffix.lower() in (*PICTURE_SUFFIXES, *MICROSCOPE_SUFFIXES, SUFFIX):
        return ""
    return printable(path.suffix.lower())[:20] or "plain"


def unique_names(files: Sequence[tuple[Path | Url, int, Sequence[str], Sequence[str]]]) -> list[str]:
    """Name the results of each picture of each file: its stem and ending, with the suffix and the folder's name if
    stems repeat.

    files: path, number, and the stem and the ending of each picture. Names that some file systems take for one
    (capitals, composed and decomposed accents) count as repeated.
    """
    candidates = []
    for path, number, stems, endings in files:
        if len(set(stems)) > 1:  # the images of an OME-Zarr, which their stems tell apart
            levels = [stems, [f"{number:05d}_{stem}" for stem in stems]]
        else:
            longer = (path.name, f"{path.parent.name}_{path.name}", f"{number:05d}_{path.name}")
            levels = [stems, *([name] * len(stems) for name in longer)]
        levels.append([f"image_{number:05d}_{place}_{len(files)}" for place in range(len(stems))])
        candidates.append([[a + b for a, b in zip(level, endings, strict=True)] for level in levels])
    times = Counter(name for levels in candidates for name in {_folded(name) for level in levels for name in level})

    def is_unique(level: list[str]) -> bool:
        return len(set(map(_folded, level))) == len(level) and all(times[_folded(name)] == 1 for name in level)

    return [name for levels in candidates for name in next(filter(is_unique, levels), levels[-1])]


def _folded(name: str) -> str:
    """What file systems that ignore case and composition make of a name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
