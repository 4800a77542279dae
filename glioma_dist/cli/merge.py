"""One plain model.safetensors from the parts of several processes: `python tools/merge_checkpoint.py --help`."""

from dataclasses import dataclass
from pathlib import Path

from glioma_dist.cli.arguments import read_arguments
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint, naming_another
from glioma_dist.model.checkpoint_writer import write_checkpoint
from glioma_dist.model.manifest import MODEL, OPTIMIZER


@dataclass(frozen=True)
class MergeConfig:
    """Write a checkpoint of FSDP2's parts as whole files, for other programs; this toolkit reads both."""

    checkpoint: Path
    """A checkpoint folder, as runs/x/last."""
    out: Path
    """A new folder for it."""


def main() -> None:
    config = read_arguments(MergeConfig)
    if config.out.exists():
        raise InputError(f"--out {config.out} exists; give a new folder")
    with naming_another(config.checkpoint):
        checkpoint = Checkpoint.read(config.checkpoint)
        weights = checkpoint.tensors(MODEL)
        moments = checkpoint.tensors(OPTIMIZER) if checkpoint.has(OPTIMIZER) else None
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(config.out, checkpoint.config, checkpoint.metadata, weights, moments)
    print(f"{len(weights)} tensors in {config.out / MODEL}")


if __name__ == "__main__":
    run_command(main)
