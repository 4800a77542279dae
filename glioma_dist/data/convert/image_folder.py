"""The files of a data set's folder, and which of them a name in the labels means."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

from glioma_dist.data.images.decoding import IMAGE_SUFFIXES
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_read


def walk_files(root: Path) -> list[Path]:
    """All that lies below a folder and is no folder, sorted; links to folders are listed and not followed.

    Raises InputError for a folder that cannot be read: its files would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise cannot_read(error.filename or root, error) from None

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [Path(folder, name) for name in sorted([*names, *links])]
    return found


def spelling(name: str) -> str:
    """A file's name in one spelling: macOS writes accents as marks of their own, and names that were made in Latin-1
    are no UTF-8."""
    if any("\udc80" <= character <= "\udcff" for character in name):
        name = os.fsencode(name).decode("latin-1")
    return unicodedata.normalize("NFC", name)


class ImageFolder:
    """The TIFF and PNG files below `root`, listed once; `source` is the folder that none may lead out of. suffixes: of
    other images that are taken, too."""

    def __init__(self, root: Path, source: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> None:
        self.root = root
        self._source = source.resolve()
        self._refuse_outside(root, str(root))
        self.files: list[Path] = []
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._others: dict[str, Path] = {}
        for path in walk_files(root):
            if path.name.lower().endswith(suffixes):
                self.files.append(path)
                self._by_name[spelling(path.name)].append(path)
            else:
                self._others[spelling(path.name)] = path

    def locate(self, file_name: str, is_only_one: bool) -> list[Path]:
        """The files that a name in the labels may mean: none, one, or several that cannot be told apart.

        is_only_one: whether no other image of the JSON has the same name without its folder; then a file in
        another folder than named is taken too. A name in another spelling (see `spelling`) is taken where there is
        none in its own. Raises InputError for a name that leads out of the source.
        """
        name = PurePosixPath(file_name)
        if name.is_absolute() or ".." in name.parts or PureWindowsPath(file_name).drive:
            raise InputError(
                f"{file_name!r} leads outside the source folder {self._source}; correct the name in the labels"
            )
        self._refuse_outside(self.root / name, file_name)
        candidates = self._by_name.get(spelling(name.name), [])
        candidates = [path for path in candidates if path.name == name.name] or candidates
        exact = [path for path in candidates if path == self.root / name]
        exact = exact or [path for path in candidates if spelling(str(path)) == spelling(str(self.root / name))]
        ending = [path for path in candidates if spelling(path.as_posix()).endswith(spelling(f"/{name}"))]
        candidates = exact or ending or (candidates if is_only_one and len(candidates) == 1 else [])
        for path in candidates:
            self._refuse_outside(path, file_name)
        return candidates

    def why_missing(self, file_name: str) -> str:
        """Why `locate` finds no file for a name, in words that are true."""
        name = PurePosixPath(file_name).name
        other = self._others.get(spelling(name))
        if other is not None:
            return f"{other}: is there, but only TIFF and PNG are read; save it as PNG, and name that in the labels"
        if self._by_name.get(spelling(name)):
            return f"no such file in the folder that the labels name, but {self._by_name[spelling(name)][0]}"
        if os.path.isdir(self.root / file_name):
            return f"{self.root / file_name}: is a folder, not a file"
        return f"no such file in {self.root}"

    def lookalikes(self) -> list[list[Path]]:
        """Files of one folder whose names differ in their spelling only, and look alike on a screen."""
        groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        for path in self.files:
            groups[path.parent, spelling(path.name)].append(path)
        return [group for group in groups.values() if len(group) > 1]

    def _refuse_outside(self, path: Path, name: str) -> None:
        try:
            inside = path.resolve().is_relative_to(self._source)
        except RuntimeError:
            raise InputError(
                f"{name[:120]!r} is a link that leads back to itself; remove it, or copy the file there"
            ) from None
        except (OSError, ValueError):
            raise InputError(f"{name[:120]!r} cannot be the name of a file; correct the labels") from None
        if not inside:
            raise InputError(f"{name!r} leads outside the source folder {self._source} (by a link); copy it there")
