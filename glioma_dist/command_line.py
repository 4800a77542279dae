"""From the words of a command line to a config."""

from __future__ import annotations

from pathlib import Path

import tyro

from glioma_dist.config_file import Config, read_config
from glioma_dist.errors import InputError


def parse(kind: type[Config], argv: list[str]) -> Config:
    """Make a config from the command line. `--config FILE` (JSON, as runs write it) is read first; flags override it.

    Raises InputError for values that cannot be used; tyro itself exits with 2 on flags it does not know.
    """
    rest, file = _take_config_flag(argv)
    default = {} if file is None else {"default": read_config(kind, file)}
    config = tyro.cli(kind, args=rest, **default)
    config.validate()
    return config


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
    return rest, file
