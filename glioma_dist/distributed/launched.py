"""What a launcher puts into the environment of the processes that it starts, and how to start others without it."""

from __future__ import annotations

import re
from collections.abc import Mapping

LAUNCH_VARIABLES = re.compile(
    r"(ACCELERATE|FSDP|TORCHELASTIC|GROUP|ROLE|MASTER)_.*|(LOCAL_)?(RANK|WORLD_SIZE)|GLIOMA_DIST_EXIT_CODES"
)
USE_CPU = "ACCELERATE_USE_CPU"


def without_launch(environment: Mapping[str, str], keep: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment for a process that is no part of this process's launch; the variables `keep` stay."""
    return {name: value for name, value in environment.items() if name in keep or not LAUNCH_VARIABLES.fullmatch(name)}
