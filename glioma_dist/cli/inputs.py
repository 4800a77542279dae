"""Refuse missing inputs before the large libraries are imported, with the messages of the code that reads them."""

from __future__ import annotations

import os
from pathlib import Path

from glioma_dist.config.model import WORDS
from glioma_dist.config.networks import example_checkpoint, hub_name, network_folder, network_names
from glioma_dist.config.paths import Url, path_or_url
from glioma_dist.data.advice import data_folder
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_read


def check_shards(flag: str, folder: str | Path | None, use: str = "shards") -> None:
    """Raises InputError if a local folder has no shards. A URL is checked when it is read. use: what needs them, for
    the message."""
    if folder is None or "://" in str(folder):
        return
    from glioma_dist.data.shards.index import check_folder

    try:
        check_folder(Path(folder), use)
    except InputError as error:
        raise type(error)(f"{flag} {error}") from None


def check_checkpoint(flag: str, folder: Path | Url) -> None:
    """Raises InputError if there is no such checkpoint. A URL is checked when it is read."""
    if isinstance(folder, Url):
        return
    if not _is_checkpoint_there(flag, folder):
        raise InputError(
            f"{flag} {folder}: no such folder; give a checkpoint folder, for example "
            f"{example_checkpoint(folder)}, or the name of a network of the package: {', '.join(network_names())}"
        )


def check_init(flag: str, init: str) -> None:
    """Raises InputError if starting weights are neither a known word nor an existing file or folder."""
    if init in WORDS or isinstance(path_or_url(init), Url) or hub_name(init) is not None:
        return
    if not _is_checkpoint_there(flag, Path(init)):
        raise InputError(
            f"{flag} {init}: no such file or folder; give random, imagenet, {', '.join(network_names())}, a checkpoint "
            f"folder such as {example_checkpoint(Path(init))}, a file of weights, or ORG/NAME of the Hugging Face hub"
        )


def check_file(flag: str, file: Path | None) -> None:
    """Raises InputError if there is no such file."""
    if file is not None and not _is_there(flag, file):
        raise InputError(f"{flag} {file}: no such file")


def check_folder_there(flag: str, folder: Path) -> None:
    """Raises InputError if there is no such folder."""
    if not _is_there(flag, folder):
        raise InputError(f"{flag} {folder}: no such folder")
    if not folder.is_dir():
        raise InputError(f"{flag} {folder}: is a file; give a folder")


def check_images(pattern: str | None) -> None:
    """Raises InputError if there is no such file or folder, and no file matches the pattern. A URL is listed later."""
    if pattern is not None and not isinstance(path_or_url(pattern), Url) and not os.path.exists(pattern):
        from glioma_dist.inference.images import find_images

        find_images(pattern)


def check_source(folder: Path) -> None:
    """Raises InputError if the folder of a data set is missing."""
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
    """Whether `path` exists, or the checkpoint before it, which a write that was killed between its renames leaves; or
    whether it is the name of a network of the package."""
    if _is_there(flag, path) or network_folder(path) is not None:
        return True
    before = path.absolute()
    return bool(before.name) and _is_there(flag, before.with_name(f"{before.name}.1"))
