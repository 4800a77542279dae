"""Commands that a command starts, and that end with it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from glioma_dist.distributed.signals import get_signal_at_parents_death

SECONDS_TO_STOP = 60
"""For a training to write its checkpoint."""


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None, output: IO | None = None) -> int:
    """Run a command to its end and return its exit code. output: a file for all that it says; None: the screen.

    Where this process is asked to stop, the command is asked, too, and may save its work; where this process is
    killed, the system asks it.
    """
    streams = {} if output is None else {"stdout": output, "stderr": subprocess.STDOUT}
    child = subprocess.Popen(command, env=environment, preexec_fn=_end_with_this_process, **streams)
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise


def _end_with_this_process() -> None:
    get_signal_at_parents_death(signal.SIGTERM)
