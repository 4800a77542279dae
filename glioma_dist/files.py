"""Files: written completely or not at all, and read with a bound.

A file is written under a temporary name in its own folder, synced, and renamed. So a file that exists is complete,
whatever happened while it was written. Commands write their files through this module; folders of shards and
checkpoints are renamed into place as one, by `rename_in_order`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any, BinaryIO

from glioma_dist.errors import DiskFullError, InputError, UnavailableError, one_line

MAX_JSON_BYTES = 2**26
"""Of a JSON file that a run or a converter wrote; those of COCO, which are larger, are read elsewhere."""
PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")
"""Names that `partial_name` gives."""
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_AWAY = (errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO)
_UNREADABLE = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EISDIR: "is a folder, not a file",
    errno.EACCES: "is there, but this user may not read it",
    errno.EPERM: "is there, but this user may not read it",
    errno.ENAMETOOLONG: "the name is too long for a file",
    errno.ENXIO: "is a socket or a device, not a file",
    errno.ELOOP: "is a link that points to itself",
}


def write_atomically(path: Path, content: bytes | str, by_several: bool = False) -> None:
    """Write a file so that a kill or a full disk at any moment leaves the old file or the new one, complete.

    Text is written as UTF-8. The file gets the mode that the process's umask gives. The folder must exist.
    by_several: several processes may write the file at the same time, also those of other machines; the last one wins.
    A temporary file that a kill leaves behind then stays, where otherwise the next write takes its place.
    Raises InputError, and leaves nothing behind, where the file cannot be written.
    """
    # The number alone is that of other processes, too, where containers or machines share the folder.
    own = path.with_name(f"{path.name} {os.uname().nodename} {os.getpid()}")
    partial = partial_name(own if by_several else path)
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        remove_quietly(partial)
        raise cannot_write(path, error) from error
    except BaseException:  # a signal
        remove_quietly(partial)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it. Raises InputError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: is a file, or lies below one; give a folder") from None
    except OSError as error:
        raise cannot_write(folder, error) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: this user may not write to it; give another folder")


def check_new_folder(flag: str, path: Path) -> None:
    """Raises InputError where `make_folder` would, and makes nothing."""
    # Not Path.exists: before Python 3.14 it raises PermissionError below a folder that this user may not enter.
    if os.path.exists(path) and not os.path.isdir(path):
        raise InputError(f"{flag} {path}: is a file, not a folder; give another name")
    _check_place(flag, path, path if os.path.isdir(path) else _nearest(path))


def check_new_file(flag: str, path: Path) -> None:
    """Raises InputError where a file cannot be written to `path`, before hours are spent on what it is to hold."""
    if not path.name or os.path.isdir(path):
        raise InputError(f"{flag} {path}: is a folder; name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{flag} {path}: is a pipe, a socket or a device, not a file; give another name")
    _check_place(flag, path, _nearest(path))


def _nearest(path: Path) -> Path:
    """The lowest of the folders above a path that is there, as far as this user may look."""
    return next(each for each in path.absolute().parents if os.path.lexists(each))


def _check_place(flag: str, path: Path, folder: Path) -> None:
    if not os.path.isdir(folder):
        raise InputError(f"{flag} {path}: {folder} is no folder; give another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {path}: this user may not write to {folder}; give another folder")


def write_json_atomically(path: Path, content: Any, indent: int | None = 2, by_several: bool = False) -> None:
    """`write_atomically` of JSON, which ends with a newline."""
    write_atomically(path, json.dumps(content, indent=indent) + "\n", by_several)


def partial_name(path: Path) -> Path:
    """The temporary name of a file that is being written: hidden, in the same folder, and short for any name."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{digest}.partial")


def remove_partials(folder: Path) -> None:
    """Remove the temporary files that writers which were killed have left in a folder that nobody writes to now."""
    for path in folder.glob(".*.partial"):
        if PARTIAL.fullmatch(path.name):
            remove_quietly(path)


def cannot_write(path: Path | str, error: OSError) -> InputError:
    """The error to raise where `path` cannot be written: what is wrong, and what to do."""
    if error.errno in _FULL:
        return DiskFullError(f"{path}: {_FULL[error.errno]}; free space, then run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{path}: cannot be written ({error.strerror}); give a folder that this user may write to")
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"{path}: the name is too long for this file system; shorten it")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(f"{path}: its folder is gone; was it removed while the command ran?")
    return InputError(f"{path}: cannot be written ({error.strerror or error}); check the path and the disk")


def cannot_read(path: Path | str, error: OSError) -> InputError:
    """The error to raise where `path` cannot be read: what is wrong, in words that are true.

    UnavailableError where a file system of another machine does not answer.
    """
    kind = UnavailableError if error.errno in _AWAY else InputError
    return kind(f"{path}: {_UNREADABLE.get(error.errno, f'cannot be read ({error.strerror or error})')}")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The bytes of a plain file of at most `max_bytes`.

    Raises InputError for a file that is missing, is not readable by this user, is larger, or is no plain file: a pipe
    or a device would be read without end.
    """
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise InputError(f"{path}: has {size} bytes, more than the {max_bytes} that are read")
            # What is asked for is also what Python sets aside: not the bound, but the size that the file has.
            data = file.read(size + 1)
            while len(data) <= max_bytes and (more := file.read(2**16)):
                data += more
    except OSError as error:
        raise cannot_read(path, error) from None
    if len(data) > max_bytes:
        raise InputError(f"{path}: grew beyond the {max_bytes} bytes that are read")
    return data


def list_folder(flag: str, folder: Path) -> list[str]:
    """The names of all that lies in a folder; none where there is no such folder. Raises InputError where this user may
    not look."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise cannot_read(f"{flag} {folder}", error) from None


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading. Raises InputError where it cannot be read, or is none: a pipe or a device."""
    try:
        # A pipe that nobody writes to would not even open.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            check_plain(path, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
    except ValueError as error:  # a name with a zero byte
        raise InputError(f"{path}: cannot be the name of a file ({error})") from None
    except OSError as error:
        raise cannot_read(path, error) from None
    return open(descriptor, "rb")


def check_plain(path: Path | str, found: os.stat_result) -> None:
    """Raises InputError where `found`, what stat says of `path`, is no plain file."""
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: is a pipe, a socket or a device, not a file")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """A JSON file's content. Raises InputError as `read_bytes`, and where it is no JSON."""
    return parse_json(read_bytes(path, max_bytes), path)


def parse_json(data: bytes | str, where: Path | str) -> Any:
    """The content of JSON text. Raises InputError naming `where` for what is no JSON, is nested too deeply, or has a
    name twice in one object."""
    try:
        return json.loads(data, object_pairs_hook=unique_names)
    except RecursionError:
        raise InputError(f"{where}: is no JSON that can be read (nested too deeply)") from None
    except RepeatedNameError as error:
        raise InputError(f"{where}: {error}; keep one of them") from None
    except ValueError as error:
        raise InputError(f"{where}: is no JSON ({error})") from None


class RepeatedNameError(ValueError):
    """A name is there twice in one JSON object: Python's parser keeps the last, others the first."""


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`. Raises RepeatedNameError."""
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise RepeatedNameError(f"{one_line(repr(name), 80)} is there twice in one object")
            seen.add(name)
    return content


def sync(path: Path) -> None:
    """Have the system bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_in_order(*renames: tuple[Path, Path]) -> None:
    """Rename finished files or folders, each from its first name to its second, and have the system keep that.

    All second names lie in one folder. A kill in between leaves the renames before it. Raises OSError.
    """
    for old, new in renames:
        os.rename(old, new)
    sync(renames[-1][1].parent)


def link_files(source: Path, target: Path) -> None:
    """Give all files of a folder second names in the new folder `target`, so that they stay if the first ones go."""
    remove_tree(target)
    target.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:  # a file system without links
            shutil.copyfile(path, target / path.name)


def remove_tree(path: Path) -> None:
    """Remove a folder, a file or a link that may be there, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove_quietly(path)


def remove_quietly(path: Path) -> None:
    """Remove a file that may be there."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
