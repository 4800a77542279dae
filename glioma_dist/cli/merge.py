"""`glioma-dist merge`: plain files from the parts of several processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_checkpoint
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class MergeConfig:
    """Write a checkpoint of FSDP2's parts as whole files, for other programs; this toolkit reads both."""

    checkpoint: Path
    """A checkpoint folder, as runs/x/last."""
    out: Path
    """A new folder for it."""

    def validate(self) -> None:
        """Raises InputError where the folder is there already."""
        if self.out.exists():
            raise InputError(f"--out {self.out} exists; give a new folder")


def run(config: MergeConfig) -> None:
    """Read the parts, and write them as one checkpoint."""
    from glioma_dist.model.checkpoint import Checkpoint, naming_another
    from glioma_dist.model.checkpoint_writer import write_checkpoint
    from glioma_dist.model.manifest import MODEL, OPTIMIZER

    with naming_another(config.checkpoint):
        checkpoint = Checkpoint.read(config.checkpoint)
        weights = checkpoint.tensors(MODEL)
        moments = checkpoint.tensors(OPTIMIZER) if checkpoint.has(OPTIMIZER) else None
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(config.out, checkpoint.config, checkpoint.metadata, weights, moments)
    print(f"{len(weights)} tensors in {config.out / MODEL}")


MERGE = Command(
    MergeConfig,
    run,
    ("glioma-dist merge --checkpoint runs/glioma/last --out runs/glioma/plain",),
    lambda config: check_checkpoint("--checkpoint", config.checkpoint),
)
