"""`serve`: load a network, open the page, and serve it until it is asked to stop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from glioma_dist.app.pictures import Segmenter
from glioma_dist.app.server import AppServer
from glioma_dist.config.paths import Url
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.remote_checkpoint import fetch_checkpoint
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.numerics import numerics
from glioma_dist.errors import InputError, Interrupted, printable
from glioma_dist.evaluation.network import load_network
from glioma_dist.size import Size


def serve(
    checkpoint: Path | Url,
    port: int,
    input_size: Size | None,
    context: DistributedContext,
    say: Callable[[str], None] = print,
) -> bool:
    """Serve the page until a signal asks this process to stop.

    Args:
        port: of 127.0.0.1; 0 for any free one. input_size: as that of `predict`.
        say: is told the page's address.

    Returns whether all work has ended. Where it has not, a thread still segments a picture that nobody waits for.
    Raises InputError where the checkpoint or the port cannot be used.
    """
    if context.num_processes > 1:
        raise InputError("app runs in one process: start it without accelerate launch")
    network, read = load_network(fetch_checkpoint(checkpoint), 1, context)
    if input_size:
        network.fit(input_size)  # refused at once, and not for each image
    with numerics(), ImageReader() as reader, temporary_folder() as folder:
        segmenter = Segmenter(network, read.config.data, input_size, reader)
        with AppServer(segmenter, printable(checkpoint), Path(folder), port) as server:
            say(f"open {server.address} in a browser of this machine; Ctrl-C ends it")
            try:
                server.serve_forever()
            except (Interrupted, KeyboardInterrupt):
                say("stopped")
    return not segmenter.is_busy


def temporary_folder() -> tempfile.TemporaryDirectory:
    """Return a folder for uploaded files. It may be removed while a picture is written to it."""
    return tempfile.TemporaryDirectory(prefix="glioma-dist-", ignore_cleanup_errors=True)
