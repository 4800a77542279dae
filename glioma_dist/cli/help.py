"""What `--help` shows: tyro's help, in words that do not presuppose Python, and with example lines at its end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from glioma_dist.config.paths import is_positional, path_marker

CONFIG_HELP = "JSON file with values for these flags, as runs write it (config.json); flags given here come first."
PLAIN_WORDS = {"INT": "N", "FLOAT": "NUMBER", "STR": "TEXT"}
"""What stands for a value, in place of the name of its Python type."""
PLAIN_DEFAULTS = {"True": "yes", "False": "no"}


def help_registry(*kinds: type) -> ConstructorRegistry:
    """Rules for tyro, under which it builds dataclasses as always. They change the words of the help only, and add to
    `kinds`, those of commands, the flag `--config`, which is taken from the command line before tyro reads it."""
    registry, inside = ConstructorRegistry(), set()

    @registry.primitive_rule
    def plain_values(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
        key = ("value", str(info.type))
        if key in inside:
            return None
        inside.add(key)
        try:
            spec = ConstructorRegistry.get_primitive_spec(info)
        finally:
            inside.discard(key)
        return replace(spec, metavar=_plain(spec.metavar)) if isinstance(spec, PrimitiveConstructorSpec) else spec

    @registry.struct_rule
    def plain_fields(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type in inside:
            return None
        inside.add(info.type)
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside.discard(info.type)
        if not isinstance(spec, StructConstructorSpec):
            return spec
        fields = tuple(
            replace(field, type=_with_hint(field.name, field.type), helptext=partial(_one_paragraph, field.helptext))
            for field in spec.fields
        )
        if info.type not in kinds:
            return replace(spec, fields=fields)
        hint = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
        config = StructFieldSpec("config", Annotated[Path | None, hint], None, CONFIG_HELP)
        return StructConstructorSpec(lambda config=None, **values: spec.instantiate(**values), (*fields, config))

    return registry


def examples_text(examples: Sequence[str]) -> str:
    """The end of a help: lines that can be typed as they are."""
    head = "example:" if len(examples) == 1 else "examples:"
    return "\n".join([head, *(f"  {each}" for each in examples), ""])


def _plain(metavar: str) -> str:
    without_none = re.sub(r"\{None\}\||\|\{None\}", "", metavar)
    without_none = re.sub(r"^\{(\[.*\])\}$", r"\1", without_none)  # of several values that may be None
    return re.sub(r"\b(INT|FLOAT|STR)\b", lambda found: PLAIN_WORDS[found[0]], without_none)


def _with_hint(name: str, hint: Any) -> Any:
    """The type of a field, with the words that say its default, and for a path what it may be."""
    marker, metavar = path_marker(hint), None
    if is_positional(hint):
        metavar = f"[{name.upper()}]" if NoneType in get_args(get_args(hint)[0]) else name.upper()
    elif marker is not None:
        word = "PATH|URL" if marker.takes_urls else "PATH"
        metavar = f"[{word} ...]" if get_origin(hint) is tuple else word
    return Annotated[hint, tyro.conf.arg(metavar=metavar, help_behavior_hint=_told_default)]


def _told_default(label: str) -> str:
    # The text of a flag without a default value says itself what happens without it.
    return "" if label in ("", "None") else f"(default: {PLAIN_DEFAULTS.get(label, label)})"


def _one_paragraph(text: str | Callable[[], str | None] | None) -> str | None:
    """A flag's text without the line breaks of the source; the terminal's width decides."""
    text = text() if callable(text) else text
    return text and " ".join(text.split())
