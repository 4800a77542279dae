"""A file of weights at a URL, fetched to this user's cache folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from glioma_dist.config.paths import Url
from glioma_dist.data.cache_folder import NEW, cache_folder, remove_leftovers
from glioma_dist.data.shards.storage import Patience, RemoteFolder
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_write, rename_in_order

MAX_WEIGHT_BYTES = 2**34
"""Of one file: 16 GiB."""


def weights_folder() -> Path:
    """Where files of weights are kept, each in a folder by its URL. They may be removed at any time."""
    return cache_folder() / "weights"


def fetch_weights(url: Url, sha256: str = "", patience: Patience | None = None) -> Path:
    """The local file of the weights at a URL. A file that was fetched before is not fetched again.

    sha256: what its SHA-256 must be, in hex; empty: not checked. Raises InputError where it cannot be had or is another
    file, UnavailableError where it may be had another time.
    """
    kept = weights_folder() / hashlib.sha256(url.encode()).hexdigest()[:32] / url.name
    if kept.is_file() and (not sha256 or _digest(kept) == sha256):
        return kept
    store = RemoteFolder(url.parent, patience)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(kept.parent)
        descriptor, name = tempfile.mkstemp(prefix=NEW, dir=kept.parent)
        with os.fdopen(descriptor, "wb") as file:

            def take_all() -> None:
                file.seek(0)
                file.truncate()
                store.stream_all(url.name, MAX_WEIGHT_BYTES, take)

            def take(data: bytes) -> None:
                file.write(data)
                file.flush()  # who waits sees that the file grows

            try:
                store.retry(url, take_all)
                os.fsync(file.fileno())
                if sha256 and (found := _digest(Path(name))) != sha256:
                    raise InputError(f"{url}: its SHA-256 is {found}, not that of --model.init-sha256; nothing is used")
                rename_in_order((Path(name), kept))
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
    except OSError as error:
        raise cannot_write(kept, error) from None
    return kept


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
