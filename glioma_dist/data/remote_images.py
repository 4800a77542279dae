"""Images at URLs: which a folder or a pattern means, parts of one, and each as a local file while it is read."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from glioma_dist.config.paths import Url
from glioma_dist.data.shards.storage import Patience
from glioma_dist.data.shards.store import Store
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_write, write_atomically

MAX_IMAGE_BYTES = 2**34
"""Of one file: 16 GiB."""
BLOCK_BYTES = 2**16
"""Of a file whose beginning, or list of pages, is looked at."""
MAX_BLOCKS = 256
"""That are kept of a file."""
OF_A_CHANGE = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "content_md5", "sha256")
"""What stores say of an object that changes where the object does."""
MAGIC = re.compile(r"[*?\[]")


class RemoteFile:
    """A file at a URL as the readers of TIFF's directories see an open file: `seek` and `read`, by blocks.

    source: what changes where the file does; empty where the store does not say. Raises InputError where the file
    cannot be had.
    """

    def __init__(self, url: Url, patience: Patience | None = None) -> None:
        self._store, self._name = Store(url.parent, patience), url.name
        told = self._store.describe(url.name)
        size = told.get("size")
        self.num_bytes = size if isinstance(size, int) else 0
        marks = [str(told[key]) for key in OF_A_CHANGE if told.get(key)]
        self.source = (str(url), self.num_bytes, *marks) if marks else ()
        self._blocks: dict[int, bytes] = {}
        self._place = 0

    def seek(self, place: int) -> None:
        """Read from byte `place` on."""
        self._place = place

    def read(self, num_bytes: int) -> bytes:
        """The next bytes, fewer at the end of the file."""
        end = min(self._place + num_bytes, self.num_bytes)
        parts = []
        while self._place < end:
            number, offset = divmod(self._place, BLOCK_BYTES)
            part = self._block(number)[offset : offset + end - self._place]
            parts.append(part)
            self._place += len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            if len(self._blocks) >= MAX_BLOCKS:
                self._blocks.pop(next(iter(self._blocks)))
            start = number * BLOCK_BYTES
            end = min(start + BLOCK_BYTES, self.num_bytes)
            self._blocks[number] = self._store.read_range(self._name, start, end, may_skip=True)
        return self._blocks[number]


def list_files(pattern: Url, patience: Patience | None = None) -> list[Url]:
    """The files that a URL means: that of a folder those in it, with `*`, `?` and `[…]` those that match, with `**`
    also in the folders below, and else the one file. Raises InputError where the store cannot list them."""
    if pattern.startswith(("http://", "https://")):
        if MAGIC.search(pattern):
            raise InputError(f"--images {pattern}: a web server lists no files; give the URL of one file, or copy them")
        return [pattern]
    root, wanted = _split(pattern, patience)
    store = Store(root, patience)
    if not wanted:
        names = store.entries()
        return [root / name for name in names] if names else [root]
    parts = wanted.split("/")
    names = store.names("") if len(parts) > 1 or "**" in wanted else store.entries()
    return sorted(root / name for name in names if _matches(name.split("/"), parts))


def _split(pattern: Url, patience: Patience | None) -> tuple[Url, str]:
    """The folder below which a pattern is one, and the rest of it; no rest where it is none. A folder or a file that is
    there under just this name, such as `plate[1]`, is no pattern, as on a disk."""
    parts = pattern.split("/")
    for number, part in enumerate(parts[3:], 3):  # behind the scheme, nothing, and the bucket
        if MAGIC.search(part):
            here = Url("/".join(parts[:number]))
            if "[" not in part or part not in Store(here, patience).entries():
                return here, "/".join(parts[number:])
    return Url(pattern.rstrip("/")), ""


def _matches(name: list[str], pattern: list[str]) -> bool:
    """Whether a name's parts match those of a pattern, as glob matches them: `**` is any number of folders, no other
    sign matches a slash, and none matches the dot of a hidden name."""
    if not name or not pattern:
        return name == pattern
    is_hidden = name[0].startswith(".") and not pattern[0].startswith(".")
    if pattern[0] == "**":
        is_within = len(name) > 1 and not is_hidden
        return _matches(name, pattern[1:]) or (is_within and _matches(name[1:], pattern))
    return not is_hidden and fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


@contextmanager
def fetched(image: Path | Url, patience: Patience | None = None) -> Iterator[Path]:
    """Within it, an image is a local file: itself, or a copy of what lies at the URL.

    Raises InputError where it cannot be had, UnavailableError where it may be another time.
    """
    if not isinstance(image, Url):
        yield image
        return
    data = Store(image.parent, patience).read_all(image.name, MAX_IMAGE_BYTES)
    with tempfile.TemporaryDirectory(prefix="glioma-dist-") as folder:
        path = Path(folder) / image.name
        try:
            write_atomically(path, data)
        except OSError as error:
            raise cannot_write(path, error) from None
        try:
            yield path
        except InputError as error:
            raise type(error)(str(error).replace(str(path), image)) from error
