"""`glioma-dist configs`: the files for accelerate launch and for schedulers, and the recipes, that come with the
package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from glioma_dist.cli.command import Command
from glioma_dist.config.launch_files import FOLDER, files, purposes
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class ConfigsConfig:
    """List the files for `accelerate launch --config_file`, in jobs/ those for SLURM, Kubernetes and SkyPilot, and in
    recipes/ those for `glioma-dist train --config`: their folder, and what each file is for."""

    name: tyro.conf.Positional[str | None] = None
    """Print only the path of this file, for example gpu.yaml, jobs/slurm.sbatch or recipes/quick.yaml."""

    def validate(self) -> None:
        """Raises InputError if there is no file of this name."""
        if self.name is not None and _full_name(self.name) not in purposes():
            raise InputError(f"NAME {self.name}: no such file; there are {', '.join(purposes())}")


def _full_name(name: str) -> str:
    """`gpu` means gpu.yaml."""
    return name if Path(name).suffix else f"{name}.yaml"


def run(config: ConfigsConfig) -> None:
    """Print the folder and the list, or one path."""
    if config.name is not None:
        print(files()[_full_name(config.name)])
        return
    print(FOLDER)
    found = purposes()
    width = max(map(len, found)) + 2
    for name, purpose in found.items():
        print(f"  {name:<{width}}{purpose}")


CONFIGS = Command(
    ConfigsConfig,
    run,
    (
        "glioma-dist configs",
        'glioma-dist train --config "$(glioma-dist configs recipes/quick.yaml)" --data.train shards/t98g/train '
        "--data.val shards/t98g/val --out runs/quick",
        'accelerate launch --quiet --config_file "$(glioma-dist configs gpu.yaml)" -m glioma_dist train '
        "--data.train shards/glioma_c6/train --out runs/glioma",
    ),
)
