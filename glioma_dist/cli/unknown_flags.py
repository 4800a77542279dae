"""Find the flag that a user meant by one that a command does not have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from typing import get_type_hints

from glioma_dist.config.paths import is_positional

LEAST_LIKENESS = 0.65
"""Of 1, by difflib: below it, a flag is another one, not one that was mistyped."""
MOST_NAMED = 3


def nearest_flags(kind: type, typed: str) -> str:
    """Return the flags of the dataclass `kind` that may be meant by `typed`, joined by "or"; "" where none is near.

    A flag's last part comes first, so that --encoder means --model.encoder, not --freeze-encoder.
    """
    name = typed.partition("=")[0].lstrip("-").replace("_", "-").lower()
    flags = ["config", *_flags_of(kind)]
    last = name.rpartition(".")[2]
    same = [flag for flag in flags if flag.rpartition(".")[2] == last]
    likeness = {flag: _likeness(name, flag) for flag in flags}
    best = max(likeness.values())
    near = same or [flag for flag in flags if likeness[flag] == best >= LEAST_LIKENESS]
    return " or ".join(f"--{flag}" for flag in near[:MOST_NAMED])


def _flags_of(kind: type, prefix: str = "") -> Iterator[str]:
    """The flags without their dashes, those of dataclasses inside, too."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        name, hint = f"{prefix}{field.name.replace('_', '-')}", hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _flags_of(hint, f"{name}.")
        elif not is_positional(hint):
            yield name
            if hint is bool:
                yield f"{prefix}no-{field.name.replace('_', '-')}"


def _likeness(typed: str, flag: str) -> float:
    """Of the whole flag, or of its last part; its first or last words alone are near enough."""
    last = flag.rpartition(".")[2]
    is_part = last.startswith(f"{typed}-") or last.endswith(f"-{typed}")
    ratios = (SequenceMatcher(None, typed, each).ratio() for each in (flag, last))
    return max(LEAST_LIKENESS if is_part else 0.0, *ratios)
