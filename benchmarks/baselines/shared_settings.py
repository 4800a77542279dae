"""Settings that all runs of a benchmark's folder share: what is there is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glioma_dist.errors import InputError
from glioma_dist.files import read_json

SETTINGS_FILE = "settings.json"
"""In that folder: what they are."""


def check_settings(config: Any, names: Sequence[str]) -> dict[str, str]:
    """The settings of these names, as text. Raises InputError where the runs and scores of `config.out` are of
    others."""
    given = {name: getattr(config, name) for name in names}
    told = {name: str(each.resolve() if isinstance(each, Path) else each) for name, each in given.items()}
    path = config.out / SETTINGS_FILE
    known = read_json(path) if path.exists() else told
    for name, value in told.items():
        if known.get(name) != value:
            raise InputError(
                f"--{name.replace('_', '-')} {value}: {config.out} holds runs with {known.get(name)}; give another "
                "--out, or the same"
            )
    return told
