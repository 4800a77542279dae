"""Configs as files. A run writes its config into config.json and every checkpoint, and reads it when it resumes; users
write recipes as YAML."""

from __future__ import annotations

import dataclasses
import difflib
import os
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from glioma_dist.config import COST_FIELDS
from glioma_dist.config.paths import StagedFolder, Url, check_paths, path_or_url
from glioma_dist.config.yaml_file import SUFFIXES, read_yaml
from glioma_dist.errors import InputError, one_line, shown
from glioma_dist.files import read_json
from glioma_dist.size import Size

Config = TypeVar("Config")


OLD_NAMES = ("chain_length", "chain_strength", "fit", "keep_decoded", "raise_contrast", "recompute", "rows")
"""Old names of settings, from before the first release. Such a config is refused."""


def read_config(kind: type[Config], path: Path) -> Config:
    """Read a config from a JSON file, as runs write it, or from a YAML file of the same names. Settings that the file
    does not have get their defaults. Raises InputError naming the file and the fault."""
    try:
        values = read_yaml(path) if path.suffix.lower() in SUFFIXES else read_json(path)
    except InputError as error:
        raise InputError(
            f"{error}; give the config.json of a run, for example runs/x/config.json, or a recipe such as "
            "recipes/quick.yaml"
        ) from error
    return from_dict(kind, values, str(path))


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config as plain JSON values: sizes and paths as text, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, StagedFolder) and value.url is not None:
            return str(value.url)
        if isinstance(value, Size | Path | Url):
            return str(value)
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(config)


def from_dict(kind: type, values: dict[str, Any], where: str = "config") -> Any:
    """Make a config from the values of `to_dict`. Raises InputError naming `where` for unknown names and bad values."""
    if values is None:
        raise InputError(f"{where}: has no settings; give some, such as lr: 0.0001, or omit it")
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected an object of settings, found {type(values).__name__}")
    known = [f.name for f in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            if name in OLD_NAMES:
                raise InputError(
                    f"{where}: the setting {name} belongs to an older version of glioma-dist; train again with the "
                    "flags that glioma-dist train --help lists"
                )
            near = difflib.get_close_matches(name[:100], known, n=1)
            advice = f"did you mean {near[0]}?" if near else one_line(f"known: {', '.join(known) or 'none'}", 200)
            raise InputError(f"{where}: unknown setting {shown(name)}; {advice}")
    hints = get_type_hints(kind)
    try:
        return kind(**{name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()})
    except TypeError as error:
        raise InputError(f"{where}: cannot be used ({one_line(error, 200)})") from error


def checked(kind: type[Config], config: Config) -> Config:
    """Return a config that Python code made, with every value converted to its field's type.

    A path or size given as text becomes a path or size; a list becomes a tuple.

    Raises InputError for a value that cannot be converted, and for everything that the command line would refuse.
    """
    if not isinstance(config, kind):
        raise InputError(f"a {kind.__name__} is needed, not {shown(config)} of type {type(config).__name__}")
    typed = from_dict(kind, to_dict(config), kind.__name__)
    values = {field.name: getattr(typed, field.name) for field in dataclasses.fields(typed)}
    check_paths(get_type_hints(kind, include_extras=True), values)
    typed.validate()
    return typed


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the settings that differ and change results, by dotted name; those of COST_FIELDS are ignored."""
    found: list[str] = []
    for name in sorted({*old, *new}):
        dotted = prefix + name
        if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
            found += differences(old[name], new[name], dotted + ".")
        elif old.get(name) != new.get(name) and dotted not in COST_FIELDS:
            found.append(f"{dotted} {old.get(name)} -> {new.get(name)}")
    return found


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Convert one JSON value to the type of a config's field. Raises InputError if it cannot be converted."""
    arms = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        if value is None and NoneType in arms:
            return None
        *others, last = (arm for arm in arms if arm is not NoneType)
        for arm in others:
            with suppress(InputError):
                return _convert(arm, value, where)
        return _convert(last, value, where)
    if get_origin(hint) is tuple and where.endswith(": train") and isinstance(value, str | None):
        value = [] if value is None else [value]  # data.train, when it was one folder
    if get_origin(hint) is tuple and isinstance(value, list):
        kinds = [arms[0]] * len(value) if arms[-1] is Ellipsis else arms
        if len(kinds) == len(value):
            return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if get_origin(hint) is Literal and value in arms:
        return value
    if dataclasses.is_dataclass(hint) and hint is not Size:
        return from_dict(hint, value, where)
    if value == "" and hint is Path:
        raise InputError(f"{where}: is empty; give a path")  # it would become the current folder
    if hint is Url and isinstance(value, str) and isinstance(path_or_url(value), Url):
        return Url(value)
    if isinstance(value, str) and hint in (Size, Path, str) and _is_name(value):
        return _size(value, where) if hint is Size else hint(value)
    if isinstance(value, bool):
        if hint is bool:
            return value
    elif (hint is float and isinstance(value, int | float)) or (
        hint is int and isinstance(value, int) and abs(value) < 2**63
    ):
        with suppress(OverflowError):
            return hint(value)
    raise InputError(f"{where}: cannot use {shown(value)}, expected {getattr(hint, '__name__', hint)}")


def _is_name(text: str) -> bool:
    """Whether `text` can be a file name on this system."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _size(text: str, where: str) -> Size:
    try:
        return Size.parse(text)
    except InputError as error:
        raise InputError(f"{where}: {one_line(error, 200)}") from error
