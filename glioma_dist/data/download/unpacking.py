"""Unpack archives of any origin: nothing is written outside the folder, no link is made, and the size is bounded."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import shutil
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from glioma_dist import files
from glioma_dist.errors import InputError, one_line

MAX_MEMBERS = 200_000
MAX_NAME_BYTES = 1000
MAX_HEADER_BYTES = 2**24
"""That a tar may have read into memory at once: long names of members are stored so."""
MAX_CENTRAL_BYTES = 2**27
"""Of the table of contents of a ZIP."""
PIECE_BYTES = 2**20
LINK_MODE, KIND_MODE, KINDS_OF_FILES = 0o120000, 0o170000, (0, 0o100000, 0o040000)
DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError),
    *(RuntimeError, ValueError, OverflowError, KeyError, IndexError, struct.error),
)
"""What the libraries raise for an archive that is damaged, encrypted or hostile. UnicodeError is a ValueError."""
SKIPPED = ("__MACOSX", ".DS_Store")
"""What macOS adds to archives."""


@dataclass(frozen=True)
class Unpacked:
    """What an archive held."""

    num_files: int
    num_bytes: int


@dataclass(frozen=True)
class _Member:
    name: str
    num_bytes: int
    is_folder: bool
    source: Any
    """What opens it."""


def check_name(name: object, where: str | Path) -> PurePosixPath:
    """The path that a name means below a folder. Raises InputError for a name that can lead out of the folder, or that
    is no name of a file on every system."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if (
        not parts
        or name.startswith("/")
        or ".." in parts
        or re.search(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:", name)
        or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES
    ):
        raise InputError(
            f"{where}: holds {one_line(repr(name), 120)}, a name that may lead out of its folder; nothing is used"
        )
    return PurePosixPath(name)


def unpack(archive: Path, folder: Path, max_bytes: int) -> Unpacked:
    """Unpack a ZIP or a tar, compressed or not, to `folder`, which must be new; a kill leaves no `folder`.

    A folder that holds all members and has the archive's own name is not repeated. Raises InputError where the archive
    is damaged, encrypted or larger than `max_bytes` when unpacked, where a member is a link or a device or leads
    outside, or where it cannot be written.
    """
    staging = files.partial_name(folder)
    files.remove_tree(staging)
    files.make_folder(staging)
    try:
        with files.open_plain(archive) as opened:
            found = _unpack_members(_members(opened, archive, max_bytes), archive, staging, max_bytes)
        inner = staging / folder.name
        is_repeated = [path.name for path in staging.iterdir()] == [folder.name] and inner.is_dir()
        files.rename_in_order((inner if is_repeated else staging, folder))
    except (OSError, *DAMAGED) as error:
        # Those of gzip and bz2 have no number; members that are a file and a folder at once are the archive's fault.
        if isinstance(error, OSError) and error.errno not in (None, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise files.cannot_write(error.filename or folder, error) from None
        raise _damaged(archive, error) from None
    finally:
        files.remove_tree(staging)
    return found


def unpacked_bytes(archive: Path, max_bytes: int) -> int | None:
    """How many bytes the members of a ZIP have together, as it says; None for a tar, which must be read to know.

    Raises InputError as `unpack`.
    """
    if not zipfile.is_zipfile(archive):
        return None
    try:
        with files.open_plain(archive) as opened:
            return sum(member.num_bytes for member in _members(opened, archive, max_bytes))
    except DAMAGED as error:
        words = one_line(f"{type(error).__name__}: {error}", 160)
        raise InputError(
            f"{archive}: is a damaged archive ({words}); remove it, and run the same command again"
        ) from None


def _unpack_members(members: Iterator[_Member], archive: Path, folder: Path, max_bytes: int) -> Unpacked:
    num_files = num_bytes = 0
    seen: set[str] = set()
    for number, member in enumerate(members):
        if number >= MAX_MEMBERS:
            raise InputError(f"{archive}: holds more than {MAX_MEMBERS} members; nothing of it is used")
        path = folder / check_name(member.name, archive)
        if any(part in SKIPPED or part.startswith("._") for part in path.relative_to(folder).parts):
            continue
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            continue
        # Two spellings of one name would be one file on some file systems.
        key = unicodedata.normalize("NFC", str(path)).casefold()
        if key in seen:
            raise InputError(f"{archive}: holds {one_line(member.name, 120)} twice; nothing of it is used")
        seen.add(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        num_bytes += _write_member(member, path, archive, max_bytes - num_bytes)
        num_files += 1
    if not num_files:
        raise InputError(f"{archive}: holds no file; is it the right archive?")
    return Unpacked(num_files, num_bytes)


def _write_member(member: _Member, path: Path, archive: Path, most: int) -> int:
    """Returns how many bytes came. The declared size is not trusted."""
    here = 0
    with member.source() as source, open(path, "xb") as file:
        while piece := source.read(PIECE_BYTES):
            here += len(piece)
            if here > min(most, member.num_bytes):
                raise _too_large(archive)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if here != member.num_bytes:
        raise ValueError(f"{member.name} has {here} bytes, {member.num_bytes} expected")
    return here


def _damaged(archive: Path, error: Exception) -> InputError:
    words = one_line(f"{type(error).__name__}: {error}", 160)
    if isinstance(error, NotImplementedError):
        return InputError(
            f"{archive}: is compressed in a way that is not read here ({words}); unpack it yourself to another folder, "
            "and convert that"
        )
    return InputError(f"{archive}: is a damaged archive ({words}); remove it, and run the same command again")


def _too_large(archive: Path) -> InputError:
    return InputError(f"{archive}: holds more bytes than it should; nothing of it is used. Is it the right archive?")


def _members(opened: BinaryIO, archive: Path, max_bytes: int) -> Iterator[_Member]:
    """The members of an archive, which is a ZIP if it looks like one, and otherwise a tar."""
    is_zip = zipfile.is_zipfile(opened)
    opened.seek(0)
    yield from _zip_members(opened, archive, max_bytes) if is_zip else _tar_members(opened, archive, max_bytes)


def _zip_members(opened: BinaryIO, archive: Path, max_bytes: int) -> Iterator[_Member]:
    # Private, but the only way to know how large the table of contents is before zipfile reads it into memory.
    find_end = getattr(zipfile, "_EndRecData", None)
    end = find_end(opened) if find_end else None
    if end is not None and end[zipfile._ECD_SIZE] > MAX_CENTRAL_BYTES:  # type: ignore[attr-defined]
        raise zipfile.BadZipFile("its table of contents is too large")
    with zipfile.ZipFile(opened) as contents:
        infos = contents.infolist()
        if sum(info.file_size for info in infos) > max_bytes:
            raise _too_large(archive)
        for info in infos:
            kind = info.external_attr >> 16 & KIND_MODE
            if kind == LINK_MODE or kind not in KINDS_OF_FILES:
                raise InputError(
                    f"{archive}: {one_line(info.filename, 120)} is a link or a device; nothing of it is used"
                )
            if info.flag_bits & 1:
                raise InputError(f"{archive}: is encrypted; unpack it yourself to another folder, and convert that")
            # orig_filename has what zipfile cuts off a name after a zero byte.
            check_name(info.orig_filename, archive)
            yield _Member(info.filename, info.file_size, info.is_dir(), lambda info=info: contents.open(info))


class _Bounded:
    """A stream that gives at most so many bytes in all."""

    def __init__(self, stream: Any, archive: Path, most: int) -> None:
        self.stream, self.archive, self.left = stream, archive, most

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _too_large(self.archive)
        return data


class _TarInfo(tarfile.TarInfo):
    """A member of a tar, whose headers are bounded: tarfile reads each into memory, whatever size it says."""

    def _proc_member(self, *arguments: Any) -> Any:
        # Called for each header when it has been parsed, and before what it announces is read.
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("holds a sparse file, which is not read")
        if self.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(*arguments)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_: Any) -> None:
        raise tarfile.ReadError("holds a sparse file, which is not read")


def _tar_members(opened: BinaryIO, archive: Path, max_bytes: int) -> Iterator[_Member]:
    head = opened.read(6)
    opened.seek(0)
    stream: Any = opened
    for magic, library in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ", lzma)):
        if head.startswith(magic):
            stream = library.open(opened)  # type: ignore[attr-defined]
    # Read front to back, so that a compressed archive is unpacked once. Headers and padding take 2 KiB a member.
    bounded = _Bounded(stream, archive, max_bytes + 2048 * MAX_MEMBERS)
    options = {"fileobj": bounded, "mode": "r|", "bufsize": 2**16, "encoding": "utf-8", "tarinfo": _TarInfo}
    with tarfile.open(**options) as contents:  # type: ignore[call-overload]
        for info in contents:
            if not (info.isfile() or info.isdir()):
                raise InputError(f"{archive}: {one_line(info.name, 120)} is a link or a device; nothing of it is used")
            if info.issparse():
                raise InputError(f"{archive}: {one_line(info.name, 120)} is a sparse file, which is not read")
            if info.size > max_bytes:
                raise _too_large(archive)
            yield _Member(info.name, info.size, info.isdir(), lambda info=info: contents.extractfile(info))


def free_bytes(folder: Path) -> int:
    """Free disk space for this user, in bytes. Raises InputError where it cannot be found out."""
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise files.cannot_read(folder, error) from None


def count_files(folder: Path) -> Unpacked:
    """The files below a folder."""
    sizes = [os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(folder) for name in names]
    return Unpacked(len(sizes), sum(sizes))
