"""This user's folder for what can be fetched or made again, and what is removed from it."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from glioma_dist.errors import InputError
from glioma_dist.files import remove_tree

NUM_KEPT = 4
"""Checkpoints of URLs that stay in the cache folder."""
SECONDS_OF_USE = 3600.0
"""A checkpoint that was asked for since then stays in any case: another process may be about to read it."""
SECONDS_OF_LEFTOVERS = 86400.0
"""After that a fetch that has not ended was killed."""
NEW = ".new-"
"""Begins the names of what is being fetched."""


def cache_folder() -> Path:
    """This user's folder for what can be fetched or made again. Raises InputError for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glioma-dist"
    except RuntimeError:
        raise InputError("this user has no home folder for a cache; set XDG_CACHE_HOME to a folder") from None


def drop_oldest(folder: Path) -> None:
    """Remove the checkpoints of URLs that were used least recently, beyond `NUM_KEPT`."""
    remove_leftovers(folder)
    with suppress(OSError):
        kept = [path for path in folder.iterdir() if re.fullmatch(r"[0-9a-f]{32}", path.name)]
        for path in sorted(kept, key=lambda each: each.stat().st_mtime)[:-NUM_KEPT]:
            if time.time() - path.stat().st_mtime > SECONDS_OF_USE:
                remove_tree(path)


def remove_leftovers(folder: Path) -> None:
    """Remove from a folder of the cache what fetches that were killed have left."""
    with suppress(OSError):
        for path in folder.glob(f"{NEW}*"):
            if time.time() - path.lstat().st_mtime > SECONDS_OF_LEFTOVERS:
                remove_tree(path)
