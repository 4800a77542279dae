"""The trained networks that come with the package: a name, such as t98g-small, stands for a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import glioma_dist

NETWORKS = Path(glioma_dist.__file__).parent / "networks"
"""A folder for each network: its checkpoint, and README.md, its model card."""


def network_names() -> list[str]:
    """Return the names of the networks, in alphabetical order."""
    return sorted(path.parent.name for path in NETWORKS.glob("*/manifest.json"))


def network_folder(name: str | Path) -> Path | None:
    """Return the checkpoint folder of the network `name`; None if no network has this name."""
    return NETWORKS / name if str(name) in network_names() else None
