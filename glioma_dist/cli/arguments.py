"""Parse a command line into a config."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from glioma_dist.cli.help import examples_text, help_registry
from glioma_dist.cli.unknown_flags import nearest_flags
from glioma_dist.config.file import read_config
from glioma_dist.config.paths import check_path, check_paths
from glioma_dist.errors import InputError, one_line
from glioma_dist.loss_terms import own_functions

Config = TypeVar("Config")


def parse(
    kind: type[Config], argv: Sequence[str] | None = None, prog: str | None = None, examples: Sequence[str] = ()
) -> Config:
    """Parse a command line (by default this process's) into a config of the dataclass `kind`, and check it.

    `--config FILE` (JSON, as runs write it, or YAML) is read first; flags override it. Every command parses its flags
    with this function, so all refuse the same paths: URLs for flags that take none, empty values, `~`. Flags without an
    effect are printed. prog, examples: the beginning and the end of `--help`.

    Raises InputError for unknown flags and for values that cannot be used.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    _refuse_empty(argv)
    rest, file = _take_config_flag(argv)
    default = {} if file is None else {"default": read_config(kind, file)}
    config = _parsed(kind, rest, prog, examples, **default)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(kind)}
    check_paths(get_type_hints(kind, include_extras=True), fields)
    if hasattr(config, "validate"):
        config.validate()
    if file is not None and hasattr(config, "loss"):
        _refuse_loss_of_file(config.loss, rest, file)
    if hasattr(config, "without_effect") and os.environ.get("RANK", "0") == "0":
        for note in config.without_effect():
            print(f"no effect: {note}", flush=True)
    return config


def _parsed(kind: type[Config], argv: list[str], prog: str | None, examples: Sequence[str], **default: Any) -> Config:
    """Return tyro's result. Raises InputError with one line instead of tyro's boxed message."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            described = " ".join((kind.__doc__ or "").split())
            return tyro.cli(kind, args=argv, prog=prog, description=described, registry=help_registry(kind), **default)
    except SystemExit as end:
        if end.code in (0, None) or not said.getvalue().strip():
            sys.stderr.write(said.getvalue())
            if examples and not any(word.startswith("--tyro-") for word in argv):
                print(examples_text(examples), end="")
            raise
        raise InputError(f"{_plainly(_unboxed(said.getvalue()), kind)} (--help lists the flags)") from None
    except InputError as error:  # of a value that is read by this package, as a size: it does not know its flag
        raise InputError(f"{_flag_of(argv, str(error))}{error}") from None


def _refuse_loss_of_file(loss: str | None, argv: Sequence[str], file: Path) -> None:
    """Raise InputError where a file alone names a function that would be run: files come from others."""
    if loss and own_functions(loss) and not any(word.partition("=")[0] == "--loss" for word in argv):
        raise InputError(
            f"--config {file}: its loss is {one_line(loss, 100)}, a function that would be run; if you trust it, "
            f"repeat it: --loss {one_line(shlex.quote(loss), 100)}"
        )


def _flag_of(argv: Sequence[str], said: str) -> str:
    """The flag, with a colon, whose value a message begins with, quoted; nothing where there is none."""
    flag = ""
    for word in argv:
        name, is_joined, value = word.partition("=")
        if name.startswith("--"):
            flag = f"{name}: "
            word = value if is_joined else word
        if said.startswith(f"{word!r} "):
            return flag
    return ""


def _plainly(said: str, kind: type) -> str:
    """Return tyro's message in the words of this program. kind: the dataclass of the flags."""
    if unknown := re.match(r"Unrecognized options: (.*?)(?: Perhaps you meant: .*)?$", said):
        flags = [word for word in unknown[1].split(", ") if word.startswith("-")]
        return _unknown(flags[0], kind) if flags else f"cannot use {unknown[1]}"
    if missing := re.match(r"(missing: .*); unknown flag (\S+)$", said):
        return f"{missing[1]}; {_unknown(missing[2], kind)}"
    if words := re.match(
        r"(?:Error parsing )?(--\S+): Could not parse arguments \[(.*)\] into (?:tuple|union) type", said
    ):
        return f"{words[1]}: cannot use {words[2]}"
    if missing := re.match(r"Missing from .*?: (\S+)", said):
        return f"missing: {missing[1]}"
    if missing := re.match(r"Missing value for argument '(\S+)'\. Expected (\d+) values", said):
        name, count = missing.groups()
        if not name.startswith("-"):
            return f"missing: {name.upper()}"
        return f"{name}: give {'a value' if count == '1' else f'{count} values'}"
    said = re.sub(r"could not convert string to float: (.+?)\.?(?= \(|$)", r"\1 is not a number", said)
    said = re.sub(r"invalid literal for int\(\) with base 10: (.+?)\.?(?= \(|$)", r"\1 is not a whole number", said)
    return said.removeprefix("Error parsing ")


def _unknown(flag: str, kind: type) -> str:
    near = nearest_flags(kind, flag)
    return f"unknown flag {one_line(flag.partition('=')[0], 80)}" + (f"; did you mean {near}?" if near else "")


def _unboxed(text: str) -> str:
    """Return tyro's message as one line, without its box, its title and the text of `--help`."""
    bare = [re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯]+|-{3,}|^[|+]|[|+]$", " ", line).strip() for line in text.splitlines()]
    title, *lines = [line for line in bare if line] or [""]
    if title == "Required options":
        unknown = lines.index("Unrecognized options:") if "Unrecognized options:" in lines else len(lines)
        missing = [line for line in lines[:unknown] if line.startswith("--") and not line.startswith("--help")]
        mistyped = [line.partition("=")[0] for line in lines[unknown:] if re.match(r"--?[a-z]", line)]
        if missing:
            also = f"; unknown flag {mistyped[0]}" if mistyped else ""
            return f"missing: {', '.join(missing)}{also}"
    return re.sub(r"\s*(Argument helptext:|For full helptext).*", "", " ".join(" ".join(lines or [title]).split()))


def _refuse_empty(argv: Sequence[str]) -> None:
    """Refuse empty values: usually a shell variable is not set, and as a path it would mean the current folder."""
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
            raise InputError("--config: give a JSON or YAML file, for example runs/x/config.json")
        position += 1
    if file is not None:
        check_path("--config", str(file))
    return rest, file
