"""`glioma-dist app`: a page in the browser that segments the images that are dropped on it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_checkpoint
from glioma_dist.config.paths import InputPath
from glioma_dist.errors import ExitCode, InputError
from glioma_dist.size import SizeFlag

MAX_PORT = 65535


@dataclass(frozen=True)
class AppConfig:
    """Start a page for the browser of this machine: drop an image on it, see the outlines of its cells, choose the
    threshold, and download the mask. Images do not leave the machine."""

    checkpoint: InputPath
    """A checkpoint folder or its URL, for example runs/x/best; or t98g-small, a network that comes with the package."""
    input_size: SizeFlag | None = None
    """Size to which an image is scaled for the network. By default: the training size if the checkpoint was trained
    with --data.transform resize, else each image's own size."""
    port: int = 8765
    """Port of the page on this machine (127.0.0.1); 0 for any free port."""

    def validate(self) -> None:
        """Raise InputError for a number that is no port."""
        if not 0 <= self.port <= MAX_PORT:
            raise InputError(f"--port {self.port}: give a number from 0 to {MAX_PORT}")


def run(config: AppConfig) -> None:
    """Serve the page until it is asked to stop."""
    from functools import partial

    from glioma_dist.app.serving import serve
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.distributed.exit_codes import note_end

    say = partial(print, flush=True)
    if not serve(config.checkpoint, config.port, config.input_size, DistributedContext.start(), say):
        # Python's own end would abort while a thread computes.
        note_end(ExitCode.FINISHED)
        os._exit(ExitCode.FINISHED)


APP = Command(
    AppConfig,
    run,
    ("glioma-dist app --checkpoint t98g-small", "glioma-dist app --checkpoint runs/glioma/best --port 8080"),
    lambda config: check_checkpoint("--checkpoint", config.checkpoint),
)
