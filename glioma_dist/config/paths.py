"""Paths on a command line: which fields of a config hold one, and which values cannot be a local path."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from glioma_dist.errors import InputError

Config = TypeVar("Config")
URL_SCHEMES = ("s3", "gs", "az", "hf", "http", "https")
"""Schemes of the URLs that can be read from."""
WRITABLE_SCHEMES = ("s3", "gs", "az", "hf")
"""Those that can be written to."""
_SCHEME = r"[^/]*[A-Za-z0-9+.-](?=:/)|pipe(?=:)"
"""At the beginning of a text that names no path of this machine."""
MAX_PATH_BYTES, MAX_NAME_BYTES = 4096, 255
"""Linux's limits for a path and for each name in it."""


@dataclass(frozen=True)
class _Marker:
    """Marks a text as a path. takes_urls: whether it may also be a URL; is_written: whether that URL is written to."""

    takes_urls: bool
    is_written: bool = False


class Url(str):
    """A URL as text, with the parts that a path has. Credentials are never part of it."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Url:
        """The folder that it lies in; itself, if it is a bucket or a host."""
        scheme, _, place = self.rstrip("/").partition("://")
        return Url(f"{scheme}://{place.rpartition('/')[0] or place}")

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.rstrip('/')}/{name}")


class StagedFolder(type(Path())):
    """The local folder in which a run that belongs to a URL is staged. Configs are written with the URL."""

    url: Url | None = None

    @classmethod
    def of(cls, path: Path, url: Url) -> StagedFolder:
        """`path`, where the run of `url` is staged."""
        folder = cls(path)
        folder.url = url
        return folder


def path_or_url(text: str) -> Path | Url:
    """What a text names: a path of this machine, or anything that has a scheme."""
    return Url(text) if re.match(rf"(?:{_SCHEME})://", text) else Path(text)


LocalPath = Annotated[str, _Marker(takes_urls=False)]
"""Text that names a local file or folder, or several by a pattern. Fields of type Path need no mark."""
PathOrUrl = Annotated[str, _Marker(takes_urls=True)]
"""Text that names a local folder or a URL."""


def _spec() -> tyro.constructors.PrimitiveConstructorSpec:
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|URL",
        instance_from_str=lambda args: path_or_url(args[0]),
        is_instance=lambda value: value is None or isinstance(value, Path | Url),
        str_from_instance=lambda value: [str(value)],
    )


InputPath = Annotated[Url | Path, _Marker(takes_urls=True), _spec()]
"""A path of this machine, or a URL that is read."""
OutputPath = Annotated[Url | Path, _Marker(takes_urls=True, is_written=True), _spec()]
"""A path of this machine, or a URL that is written to."""
OptionalOutputPath = Annotated[Url | Path | None, _Marker(takes_urls=True, is_written=True), _spec()]
"""The same, or nothing. tyro does not recognise a value of a union within an optional type."""


def check_paths(hints: dict[str, Any], values: dict[str, Any], prefix: str = "--") -> None:
    """Raises InputError, naming the flag, for the first value that cannot be a path.

    hints: the type of each value by its name, including `Annotated`. Nested configs are checked, too.
    """
    for flag, text, marker in _paths_of(hints, values, prefix):
        check_path(flag, text, marker.takes_urls, marker.is_written)


def check_path(flag: str, text: str, takes_urls: bool = False, is_written: bool = False) -> None:
    """Raises InputError for a path that would not mean what the user expects."""
    scheme, known = re.match(_SCHEME, text), WRITABLE_SCHEMES if is_written else URL_SCHEMES
    if scheme and takes_urls and scheme[0] in known and text.startswith(f"{scheme[0]}://"):
        _check_url(flag, text)
        return
    if scheme and takes_urls:
        schemes = ", ".join(f"{each}://" for each in known)
        raise InputError(
            f"{flag} {_without_secrets(text)}: cannot {'write to' if is_written else 'read'} this kind of URL; give a "
            f"path of this machine, or a URL that begins with one of {schemes}"
        )
    if scheme:
        raise InputError(
            f"{flag} {_without_secrets(text)}: {scheme[0]}: is not supported by this flag; give a path of this machine"
        )
    if not text.strip():
        raise InputError(f"{flag}: its value is empty; give a path")
    if "\0" in text:
        raise InputError(f"{flag} {text}: contains a zero byte; give a path without one")
    if os.path.expanduser(text) != text:
        raise InputError(f"{flag} {text}: the shell did not expand ~; give {os.path.expanduser(text)}")
    if _is_loop(text):
        raise InputError(f"{flag} {text}: is a link that points to itself; give another path")
    raw = os.fsencode(text)
    if len(raw) >= MAX_PATH_BYTES or max(map(len, raw.split(b"/"))) > MAX_NAME_BYTES:
        raise InputError(f"{flag} {text}: is too long for a path; a name has at most {MAX_NAME_BYTES} bytes")


def _check_url(flag: str, url: str) -> None:
    """Raises InputError for a URL without a bucket or host, and for one that can hold a secret."""
    place = url.partition("://")[2]
    if "::" in url or not re.fullmatch(r"[^\s/\x00-\x1f][^\x00-\x1f]*", place):
        raise InputError(f"{flag} {_without_secrets(url)}: is no URL of a file or folder; give SCHEME://BUCKET/FOLDER")
    if "@" in place.partition("/")[0] or "#" in place or re.search(r"\?[^/]*=", place):
        raise InputError(
            f"{flag} {url.partition('://')[0]}://…: a URL with a user, a query or a fragment can hold a secret, and is "
            "written to config.json as it is; give the plain URL, and credentials through the environment"
        )


def _is_loop(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def path_flags(kind: Any, prefix: str = "--") -> dict[str, bool]:
    """Return for each path flag of a config class or function whether it takes URLs."""
    flags = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            flags |= path_flags(hint, f"{prefix}{_dashed(name)}.")
        elif (marker := path_marker(hint)) is not None:
            flags[_flag(name, hint, prefix)] = marker.takes_urls
    return flags


def _paths_of(hints: dict[str, Any], values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, _Marker]]:
    for name, value in values.items():
        hint = hints.get(name)
        if dataclasses.is_dataclass(value):
            inner = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            inner_hints = get_type_hints(type(value), include_extras=True)
            yield from _paths_of(inner_hints, inner, f"{prefix}{_dashed(name)}.")
            continue
        marker = path_marker(hint)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Path) or (marker is not None and isinstance(each, str)):
                yield _flag(name, hint, prefix), str(each), marker or _Marker(takes_urls=False)


def without_folders(config: Config) -> Config:
    """Return a config with the names of all its files and folders, and not where they are."""
    changes = {}
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[name] = without_folders(value)
        elif path_marker(hint) is not None:
            changes[name] = tuple(map(_bare, value)) if isinstance(value, tuple) else _bare(value)
    return dataclasses.replace(config, **changes)


def _bare(path: Path | str | None) -> Path | str | None:
    """The name of a path, or of a text that names one."""
    if path is None:
        return None
    name = Path(path).name
    return name if isinstance(path, str) and not isinstance(path, Url) else Path(name)


def path_marker(hint: Any) -> _Marker | None:
    """Return the path mark of a type, also if it is optional or a tuple."""
    if get_origin(hint) is Annotated:
        found = next((each for each in hint.__metadata__ if isinstance(each, _Marker)), None)
        return found or path_marker(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType, tuple):
        return next(filter(None, map(path_marker, get_args(hint))), None)
    return _Marker(takes_urls=False) if hint is Path else None


def _flag(name: str, hint: Any, prefix: str) -> str:
    return name.upper() if is_positional(hint) else f"{prefix}{_dashed(name)}"


def is_positional(hint: Any) -> bool:
    """Whether a value is given by its position, without a flag."""
    return get_origin(hint) is Annotated and tyro.conf.Positional[str].__metadata__[0] in hint.__metadata__


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _without_secrets(url: str) -> str:
    """Return a URL without password and signature, because messages end up in logs."""
    return re.sub(r"(:/+)[^/@]*@", r"\1…@", re.split(r"[?#]", url)[0])


def without_credentials(text: str) -> str:
    """Return a setting without what a URL in it may hold of secrets, for places that others can read."""
    return _without_secrets(text) if "://" in text else text
