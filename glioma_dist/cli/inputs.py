"""Inputs that are not there are refused before the large libraries are imported, in the words of their readers."""

from __future__ import annotations

import os
from pathlib import Path

from glioma_dist.data.advice import data_folder
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_read


def check_shards(flag: str, folder: str | Path | None) -> None:
    """Raises InputError where a local folder holds no shards. A URL is looked at when it is read."""
    if folder is None or "://" in str(folder):
        return
    from glioma_dist.data.shards.index import check_folder

    try:
        check_folder(Path(folder))
    except InputError as error:
        raise type(error)(f"{flag} {error}") from None


def check_checkpoint(flag: str, folder: Path) -> None:
    """Raises InputError where there is nothing of this name."""
    if not _is_checkpoint_there(flag, folder):
        raise InputError(f"{flag} {folder}: no such folder; give a checkpoint folder, as runs/x/best")


def check_init(flag: str, init: str) -> None:
    """Raises InputError where starting weights are neither a word that is known nor a file or folder."""
    if init not in ("random", "imagenet") and not _is_checkpoint_there(flag, Path(init)):
        raise InputError(
            f"{flag} {init}: no such file or folder; give random, imagenet, a checkpoint folder as runs/x/best, or a "
            "file of weights"
        )


def check_file(flag: str, file: Path | None) -> None:
    """Raises InputError where there is no such file."""
    if file is not None and not _is_there(flag, file):
        raise InputError(f"{flag} {file}: no such file")


def check_folder_there(flag: str, folder: Path) -> None:
    """Raises InputError where there is no such folder."""
    if not _is_there(flag, folder):
        raise InputError(f"{flag} {folder}: no such folder")
    if not folder.is_dir():
        raise InputError(f"{flag} {folder}: is a file; give a folder")


def check_images(pattern: str | None) -> None:
    """Raises InputError where there is no such file or folder, and no file that the pattern matches."""
    if pattern is not None and not os.path.exists(pattern):
        from glioma_dist.inference.images import find_images

        find_images(pattern)


def check_source(folder: Path) -> None:
    """Raises InputError where the folder of a data set is not there."""
    data_folder(folder)


def _is_there(flag: str, path: Path) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise cannot_read(f"{flag} {path}", error) from None
    return True


def _is_checkpoint_there(flag: str, path: Path) -> bool:
    """Whether `path` is there, or what a write that was killed between its renames left of it."""
    before = path.absolute()
    return _is_there(flag, path) or (bool(before.name) and _is_there(flag, before.with_name(f"{before.name}.1")))
