"""The text of `--help`: tyro's help without Python's terms, with examples at its end."""

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

CONFIG_HELP = (
    "JSON file with values for these flags, as runs write it (config.json), or a YAML file with some of them "
    "(recipes/quick.yaml). Flags override it."
)
PLAIN_WORDS = {"INT": "N", "FLOAT": "NUMBER", "STR": "TEXT"}
"""Placeholders for values, instead of the names of Python types."""
PLAIN_DEFAULTS = {"True": "yes", "False": "no"}


def help_registry(*kinds: type) -> ConstructorRegistry:
    """Return rules for tyro that change the texts of the help only.

    They also add the flag `--config` to the help of `kinds`, the dataclasses of commands. `parse` takes this flag from
    the command line before tyro reads it.
    """
    registry, inside = ConstructorRegistry(), set()
    known: dict[Any, PrimitiveConstructorSpec | UnsupportedTypeAnnotationError] = {}  # tyro asks 15 times for a flag

    @registry.primitive_rule
    def plain_values(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
        key = ("value", str(info.type), frozenset(info.markers))
        if key in inside:
            return None
        if key not in known:
            inside.add(key)
            try:
                spec = ConstructorRegistry.get_primitive_spec(info)
            finally:
                inside.discard(key)
            is_value = isinstance(spec, PrimitiveConstructorSpec)
            known[key] = replace(spec, metavar=_plain(spec.metavar)) if is_value else spec
        return known[key]

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
    """Return the end of a help text: complete commands."""
    head = "example:" if len(examples) == 1 else "examples:"
    return "\n".join([head, *(f"  {each}" for each in examples), ""])


def _plain(metavar: str) -> str:
    without_none = re.sub(r"\{None\}\||\|\{None\}", "", metavar)
    without_none = re.sub(r"^\{(\[.*\])\}$", r"\1", without_none)  # an optional tuple
    return re.sub(r"\b(INT|FLOAT|STR)\b", lambda found: PLAIN_WORDS[found[0]], without_none)


def _with_hint(name: str, hint: Any) -> Any:
    """Return the type of a field with the text of its default, and for a path its placeholder."""
    marker, metavar = path_marker(hint), None
    if is_positional(hint):
        metavar = f"[{name.upper()}]" if NoneType in get_args(get_args(hint)[0]) else name.upper()
    elif marker is not None:
        word = "PATH|URL" if marker.takes_urls else "PATH"
        metavar = f"[{word} ...]" if get_origin(hint) is tuple else word
    return Annotated[hint, tyro.conf.arg(metavar=metavar, help_behavior_hint=_told_default)]


def _told_default(label: str) -> str:
    # If a flag has no default value, its own text says what happens without it.
    return "" if label in ("", "None") else f"(default: {PLAIN_DEFAULTS.get(label, label)})"


def _one_paragraph(text: str | Callable[[], str | None] | None) -> str | None:
    """Return a flag's text without the line breaks of the source, to be wrapped at the terminal's width."""
    text = text() if callable(text) else text
    return text and " ".join(text.split())
