"""`glioma-dist merge`: join the files of a sharded checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_checkpoint
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class MergeConfig:
    """Join the sharded files of an FSDP2 checkpoint into one file each, for other programs. This toolkit reads both."""

    checkpoint: Path
    """A checkpoint folder, for example runs/x/last."""
    out: Path
    """New folder for the joined checkpoint."""

    def validate(self) -> None:
        """Raises InputError if the folder exists already."""
        if os.path.exists(self.out):
            raise InputError(f"--out {self.out} exists; give a new folder")


def run(config: MergeConfig) -> None:
    """Read the sharded files, and write the joined checkpoint."""
    from glioma_dist.files import make_folder
    from glioma_dist.model.checkpoint import Checkpoint, naming_another
    from glioma_dist.model.checkpoint_writer import write_checkpoint
    from glioma_dist.model.manifest import EMA, MODEL, OPTIMIZER

    with naming_another(config.checkpoint):
        checkpoint = Checkpoint.read(config.checkpoint)
        weights = checkpoint.tensors(MODEL)
        moments, average = (checkpoint.tensors(name) if checkpoint.has(name) else None for name in (OPTIMIZER, EMA))
    make_folder(config.out.parent)
    write_checkpoint(config.out, checkpoint.config, checkpoint.metadata, weights, moments, average=average)
    print(f"{len(weights)} tensors in {config.out / MODEL}")


MERGE = Command(
    MergeConfig,
    run,
    ("glioma-dist merge --checkpoint runs/glioma/last --out runs/glioma/plain",),
    lambda config: check_checkpoint("--checkpoint", config.checkpoint),
)
