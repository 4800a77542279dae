"""From the words of a command line to a config."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from glioma_dist.config.file import Config, read_config
from glioma_dist.config.paths import check_path, check_paths
from glioma_dist.errors import InputError

Kind = TypeVar("Kind")


def parse(kind: type[Config], argv: list[str]) -> Config:
    """Make a config from the command line. `--config FILE` (JSON, as runs write it) is read first; flags override it.

    Raises InputError for flags that are not known and for values that cannot be used.
    """
    _refuse_empty(argv)
    rest, file = _take_config_flag(argv)
    default = {} if file is None else {"default": read_config(kind, file)}
    return read_arguments(kind, rest, **default)


def read_arguments(kind: type[Kind], argv: Sequence[str] | None = None, **default: Kind) -> Kind:
    """Make a config of the dataclass `kind`, checked, from the command line (by default this process's).

    Every command reads its flags through this function or through `run_function`, so that all refuse the same paths:
    URLs where none is read, empty values, `~`. Flags without an effect are named on the screen.

    Raises InputError for flags that are not known and for values that cannot be used.
    """
    config = _parsed(kind, argv, **default)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    check_paths(get_type_hints(kind, include_extras=True), fields)
    if hasattr(config, "validate"):
        config.validate()
    if hasattr(config, "without_effect") and os.environ.get("RANK", "0") == "0":
        for note in config.without_effect():
            print(f"no effect: {note}", flush=True)
    return config


def run_function(function: Callable[..., None], argv: Sequence[str] | None = None) -> None:
    """Call `function` with its arguments from the command line. Raises InputError as `read_arguments`."""

    @functools.wraps(function)
    def arguments(**values: Any) -> dict[str, Any]:
        return values

    values = _parsed(arguments, argv)
    check_paths(get_type_hints(function, include_extras=True), values)
    function(**values)


def _parsed(target: Callable[..., Any], argv: Sequence[str] | None, **default: Any) -> Any:
    """tyro's result; its message, in a box of several lines, becomes an InputError of one."""
    argv = sys.argv[1:] if argv is None else argv
    _refuse_empty(argv)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(target, args=list(argv), **default)
    except SystemExit as end:
        if end.code in (0, None) or not said.getvalue().strip():
            sys.stderr.write(said.getvalue())
            raise
        what = _unboxed(said.getvalue())
        raise InputError(f"{what} (--help lists the flags)") from None


def _unboxed(text: str) -> str:
    """tyro's message without its box, its title and the text of `--help`, as one line."""
    bare = [re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯]+|-{3,}|^[|+]|[|+]$", " ", line).strip() for line in text.splitlines()]
    title, *lines = [line for line in bare if line] or [""]
    missing = [line for line in lines if line.startswith("--")]
    if title == "Required options" and missing:
        return f"missing: {', '.join(missing)}"
    return re.sub(r"\s*(Argument helptext:|For full helptext).*", "", " ".join(" ".join(lines or [title]).split()))


def _refuse_empty(argv: Sequence[str]) -> None:
    """An empty value is a variable of the shell that is not set; as a path it would be the current folder."""
    for before, word in zip(["", *argv], argv, strict=False):
        if not word.strip():
            raise InputError(f"{before or 'an argument'}: the value is empty; check that the shell variable is set")
        if match := re.fullmatch(r"(--[^=]+)=\s*", word):
            raise InputError(f"{match[1]}: the value is empty; check that the shell variable is set")


def _take_config_flag(argv: list[str]) -> tuple[list[str], Path | None]:
    rest, file, position = [], None, 0
    while position < len(argv):
        name, has_value, value = argv[position].partition("=")
        if name != "--config":
            rest.append(argv[position])
        elif has_value:
            file = Path(value)
        elif position + 1 < len(argv):
            position += 1
            file = Path(argv[position])
        else:
            raise InputError("--config: name a JSON file, as runs/x/config.json")
        position += 1
    if file is not None:
        check_path("--config", str(file))
    return rest, file
