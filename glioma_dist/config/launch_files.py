"""The files for `accelerate launch --config_file` that come with the package: one short, commented YAML a situation."""

from __future__ import annotations

from pathlib import Path

import glioma_dist

FOLDER = Path(glioma_dist.__file__).parent / "accelerate_configs"
CLONE = Path("accelerate_configs")
"""The same folder by its short name, in a clone of the repository."""


def launch_file(name: str) -> Path:
    """The file `name`: by its short name where the current folder is a clone, else where the package is."""
    return CLONE / name if (CLONE / name).is_file() else FOLDER / name


def purposes() -> dict[str, str]:
    """Name of each file -> what it is for: the first sentence of its comment."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        comment = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
        found[path.name] = comment.partition(". ")[0].partition(": `")[0].rstrip(".:") + "."
    return found
