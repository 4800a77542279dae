"""What a command is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _nothing(_: Any) -> None:
    """A command without input files."""


@dataclass(frozen=True)
class Command:
    """A command of the program. Its module imports nothing that takes long; `run` imports what it calls."""

    config: type
    """The dataclass of its flags; its docstring is the first line of `--help`."""
    run: Callable[[Any], None]
    """Does the work, given the config. Errors that end it are RunErrors."""
    examples: tuple[str, ...]
    """Lines that can be typed, for the end of `--help`."""
    check: Callable[[Any], None] = _nothing
    """Raises InputError for inputs that are not there, before `run` imports the large libraries."""
