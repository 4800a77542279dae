"""A process of a launch that ends as it is told: `python ending.py ENDING [RANK]`. All ranks do, or RANK alone; the
others then wait for the launcher to stop them."""

import os
import signal
import sys
import time

from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import (
    InputError,
    MemoryFullError,
    NonFiniteError,
    PartialError,
    StopRequested,
    UnavailableError,
)

ERRORS = {
    "user_error": InputError("--lr fast: is no number"),
    "out_of_memory": MemoryFullError("out of memory"),
    "non_finite_loss": NonFiniteError("the loss is nan"),
    "unavailable": UnavailableError("another process of this run did not answer"),
    "stopped": StopRequested("received SIGTERM"),
    "unexpected": ZeroDivisionError("a bug"),
    "partial": PartialError("1 of 2 images could not be used"),
}


def end(ending: str) -> None:
    """End this process; `finished` returns."""
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif ending == "exited":  # as a command does that has printed its own lines
        sys.exit(1)
    elif ending != "finished":
        raise ERRORS[ending]


def main() -> None:
    ending, only = sys.argv[1], sys.argv[2:]
    if only and os.environ.get("RANK", "0") != only[0]:
        time.sleep(60)
    end(ending)


if __name__ == "__main__":
    run_command(main)
