"""`glioma-dist encoders`: list the encoders with their costs."""

from __future__ import annotations

from dataclasses import dataclass

from glioma_dist.benchmark.encoder_table import encoder_table
from glioma_dist.cli.command import Command
from glioma_dist.errors import one_line
from glioma_dist.registry import encoders


@dataclass(frozen=True)
class EncodersConfig:
    """List the encoders with their parameters, and the operations and memory estimated for two image sizes."""


def run(_: EncodersConfig) -> None:
    """Print the table, and a line for each encoder of another installed distribution, usable or not."""
    print(encoder_table())
    print("Also timm/NAME: any timm model that gives feature maps, for example timm/convnext_tiny.")
    own = encoders.names()
    for entry in encoders.entries():
        if entry.name not in own:
            print(f"Also {one_line(entry.described, 200)}.")
    for fault in encoders.unread():
        print(f"Cannot be used: {one_line(fault, 300)}")


ENCODERS = Command(EncodersConfig, run, ("glioma-dist encoders",))
