"""Pages of the commands for the documentation site, made from the dataclasses of their flags.

A page has what `glioma-dist COMMAND --help` prints: the same flags, values, defaults, texts and examples.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import sys
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from glioma_dist.cli.help import CONFIG_HELP
from glioma_dist.cli.program import COMMANDS, NAME, overview
from glioma_dist.config.paths import is_positional, path_marker
from glioma_dist.size import Size

WORDS = {int: "N", float: "NUMBER", str: "TEXT", Size: "WxH"}
"""Type of a value -> its placeholder, as in `--help`."""

LINE = 76
"""Characters of a line of code that a page shows without scrolling."""


@dataclass(frozen=True)
class Flag:
    """A row of a page."""

    name: str
    """As it is typed: --data.size; a positional value in capitals; a switch as --tf32, --no-tf32."""
    values: str
    """Placeholders of its values; empty for a switch."""
    default: str
    """Its default value, "required", or empty where its text says what happens without it."""
    text: str


def page_name(command: str) -> str:
    """Return the file name of a command's page: convert-folder.md."""
    return f"{command.replace(' ', '-')}.md"


def command_page(command: str) -> str:
    """Return the page of a command, in Markdown."""
    entry = COMMANDS[command]
    loaded = entry.load()
    lines = [f"# {NAME} {command}", "", plain_text(one_paragraph(loaded.config.__doc__)), ""]
    lines += ["```", *(each for example in loaded.examples for each in wrapped(example)), "```", ""]
    for title, text, flags in flag_groups(loaded.config):
        lines += [f"## {title}", "", *([plain_text(text), ""] if text else [])]
        for flag in flags:
            lines += [*_definition(flag), ""]
    return "\n".join(lines)


def overview_page() -> str:
    """Return the list of all commands, in Markdown."""
    lines = ["# Commands", "", f"`{NAME} COMMAND --help` prints the same texts as these pages.", ""]
    lines += ["| Command | |", "|---|---|"]
    lines += [f"| [{name}]({page_name(name)}) | {entry.summary} |" for name, entry in COMMANDS.items()]
    lines += ["", "## Flags without a command", ""]
    for line in overview().partition("flags:\n")[2].partition("\n\n")[0].splitlines():
        names, text = re.split(r"  +", line.strip(), maxsplit=1)
        lines += [*_definition(Flag(names, "", "", text)), ""]
    return "\n".join(lines)


def wrapped(command: str) -> list[str]:
    """Return a command in lines of at most `LINE` characters, broken before flags, as a shell reads them."""
    lines: list[str] = []
    for part in re.split(r" (?=--\w)", command):
        if lines and len(lines[-1]) + len(part) < LINE:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}" if lines else part)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def flag_groups(kind: type) -> list[tuple[str, str, list[Flag]]]:
    """Return title, text and flags of each group of a command's flags, in the order of `--help`.

    kind: the dataclass of the flags. Each dataclass inside it is a group.
    """
    own, groups = [], []
    hints = get_type_hints(kind, include_extras=True)
    texts = field_texts(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint) and hint is not Size:
            name = _dashed(field.name)
            groups.append((f"--{name}", one_paragraph(hint.__doc__), _flags_of(hint, f"--{name}.")))
        else:
            own.append(_flag(field, hint, texts[field.name], "--"))
    own.append(Flag("--config", "FILE", "", CONFIG_HELP))
    return [("Flags", "", own), *groups]


def _flags_of(kind: type, prefix: str) -> list[Flag]:
    hints, texts = get_type_hints(kind, include_extras=True), field_texts(kind)
    return [_flag(field, hints[field.name], texts[field.name], prefix) for field in fields(kind)]


def _flag(field: Field[Any], hint: Any, text: str, prefix: str) -> Flag:
    name = field.name.upper() if is_positional(hint) else f"{prefix}{_dashed(field.name)}"
    default = "required" if _has_no_default(field) else told_default(_default(field))
    if is_positional(hint) and default == "required" and get_origin(get_args(hint)[0]) is tuple:
        default = ""  # a list of values, which the help does not call required
    if hint is bool:
        return Flag(f"{name}, {prefix}no-{_dashed(field.name)}", "", default, text)
    return Flag(name, "" if is_positional(hint) else placeholder(hint), default, text)


def placeholder(hint: Any) -> str:
    """Return what stands for the values of a flag: N, PATH, resize|random-crop, N N N, WxH [WxH ...]."""
    origin, arguments = get_origin(hint), get_args(hint)
    if (marker := path_marker(hint)) is not None and origin is not tuple:
        return "PATH|URL" if marker.takes_urls else "PATH"
    if origin is Annotated:
        return placeholder(arguments[0])
    if origin in (Union, UnionType):
        return "|".join(placeholder(each) for each in arguments if each is not NoneType)
    if origin is Literal:
        return "|".join(str(each) for each in arguments)
    if origin is tuple and arguments[1:] == (...,):
        return f"{placeholder(arguments[0])} ..."
    if origin is tuple:
        return " ".join(placeholder(each) for each in arguments)
    return WORDS[hint]


def told_default(value: Any) -> str:
    """Return a default value as one types it; empty for none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    return shlex.join(str(each) for each in values)


@cache
def field_texts(kind: type) -> dict[str, str]:
    """Return the text of each field of a dataclass: the string below it in the source."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not is_dataclass(each):
            continue
        source = Path(inspect.getfile(sys.modules[each.__module__])).read_text()
        (node,) = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef) and n.name == each.__name__)
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                texts[field.target.id] = one_paragraph(ast.literal_eval(below.value))
    return texts


def one_paragraph(text: str | None) -> str:
    """Return a text of the source without its line breaks."""
    return " ".join((text or "").split())


def _definition(flag: Flag) -> list[str]:
    """Return the lines of a flag: a term and its text, as Python-Markdown's `def_list` reads them."""
    term = f"`{flag.name}{' ' if flag.values else ''}{flag.values}`"
    if flag.default:
        term += " (required)" if flag.default == "required" else f" (default: `{flag.default}`)"
    return [term, f":   {plain_text(flag.text)}"]


def plain_text(text: str) -> str:
    """Return a text with what Markdown and HTML would read as marks, except in backticks."""
    return re.sub(
        r"(?P<code>`[^`]*`)|(?P<mark>[*<\\\[\]])",
        lambda found: found["code"] or ("&lt;" if found["mark"] == "<" else f"\\{found['mark']}"),
        text,
    )


def _has_no_default(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _dashed(name: str) -> str:
    return name.replace("_", "-")
