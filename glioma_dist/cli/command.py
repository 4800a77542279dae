"""The parts of a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _nothing(_: Any) -> None:
    """A command without input files."""


@dataclass(frozen=True)
class Command:
    """A command of the program. Its module imports nothing slow; `run` imports what it needs."""

    config: type
    """The dataclass of its flags; its docstring is the first line of `--help`."""
    run: Callable[[Any], None]
    """Does the work for a config. Raises RunError for errors with a message for the user."""
    examples: tuple[str, ...]
    """Complete commands for the end of `--help`."""
    check: Callable[[Any], None] = _nothing
    """Raises InputError for missing inputs, before `run` imports the large libraries."""
