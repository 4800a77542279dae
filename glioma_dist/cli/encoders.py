"""`glioma-dist encoders`: the encoders, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass

from glioma_dist.benchmark.encoder_table import encoder_table
from glioma_dist.cli.command import Command


@dataclass(frozen=True)
class EncodersConfig:
    """List the encoders with their parameters, operations and memory, as counted for two sizes of images."""


def run(_: EncodersConfig) -> None:
    """Print the table."""
    print(encoder_table())


ENCODERS = Command(EncodersConfig, run, ("glioma-dist encoders",))
