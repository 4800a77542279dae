"""The trained networks that come with the package: a name, such as t98g-small, stands for a checkpoint folder. And what
else names a network: a repository of the hub, the checkpoints of a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import glioma_dist

NETWORKS = Path(glioma_dist.__file__).parent / "networks"
"""A folder for each network: its checkpoint, and README.md, its model card."""


_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
HUB_NAME = re.compile(rf"(?:hf://)?((?!.*(?:--|\.\.|\.git$)){_PART}/{_PART})", re.ASCII)
"""A repository of the Hugging Face hub: ORG/NAME, or hf://ORG/NAME, by the hub's own rules for names."""


def hub_name(text: str) -> str | None:
    """The repository of the hub, as ORG/NAME, that a text names; None for a path: if it is there, or the folder ORG."""
    found = HUB_NAME.fullmatch(text)
    if found is None or text.startswith("hf://"):
        return found and found[1]
    # Not Path.exists: before Python 3.14 it raises PermissionError below a folder that this user may not enter.
    is_path = any(map(os.path.exists, (text, os.path.dirname(text), f"{text}.1")))
    return None if is_path else found[1]


def example_checkpoint(folder: Path) -> Path:
    """The checkpoint to name to a user who gave `folder`, in which none is: the best or the last of the run that it is,
    or lies in, whichever is there; of no run, an example."""
    found = (run / name for run in (folder, folder.parent) for name in ("best", "last"))
    return next((path for path in found if os.path.isfile(path / "manifest.json")), Path("runs/x/best"))


def network_names() -> list[str]:
    """Return the names of the networks, in alphabetical order."""
    return sorted(path.parent.name for path in NETWORKS.glob("*/manifest.json"))


def network_folder(name: str | Path) -> Path | None:
    """Return the checkpoint folder of the network `name`; None if no network has this name."""
    return NETWORKS / name if str(name) in network_names() else None
