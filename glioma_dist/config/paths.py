"""Paths on a command line: which fields of a config hold one, and which values cannot be a local path."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from glioma_dist.errors import InputError

URL_SCHEMES = ("s3", "gs", "az", "hf", "http", "https")
"""Schemes of the URLs that shards can be read from."""
MAX_PATH_BYTES, MAX_NAME_BYTES = 4096, 255
"""Linux's limits for a path and for each name in it."""


@dataclass(frozen=True)
class _Marker:
    """Marks a text as a path. takes_urls: whether it may also be a URL."""

    takes_urls: bool


LocalPath = Annotated[str, _Marker(takes_urls=False)]
"""Text that names a local file or folder, or several by a pattern. Fields of type Path need no mark."""
PathOrUrl = Annotated[str, _Marker(takes_urls=True)]
"""Text that names a local folder or a URL."""


def check_paths(hints: dict[str, Any], values: dict[str, Any], prefix: str = "--") -> None:
    """Raises InputError, naming the flag, for the first value that cannot be a path.

    hints: the type of each value by its name, including `Annotated`. Nested configs are checked, too.
    """
    for flag, text, takes_urls in _paths_of(hints, values, prefix):
        check_path(flag, text, takes_urls)


def check_path(flag: str, text: str, takes_urls: bool = False) -> None:
    """Raises InputError for a path that would not mean what the user expects."""
    scheme = re.match(r"[^/]*[A-Za-z0-9+.-](?=:/)|pipe(?=:)", text)
    if scheme and takes_urls and scheme[0] in URL_SCHEMES and text.startswith(f"{scheme[0]}://"):
        return  # the code that reads the URL checks the rest
    if scheme and takes_urls:
        schemes = ", ".join(f"{each}://" for each in URL_SCHEMES)
        raise InputError(
            f"{flag} {_without_secrets(text)}: cannot read this kind of URL; give a path of this machine, or a URL "
            f"that begins with one of {schemes}"
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


def _paths_of(hints: dict[str, Any], values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, bool]]:
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
                takes_urls = marker is not None and marker.takes_urls
                yield _flag(name, hint, prefix), str(each), takes_urls


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
    return re.sub(r"(:/+)[^/@]*@", r"\1…@", url.partition("?")[0])


def without_credentials(text: str) -> str:
    """Return a setting without what a URL in it may hold of secrets, for places that others can read."""
    return _without_secrets(text) if "://" in text else text
