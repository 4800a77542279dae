"""Recognises errors of gloo, NCCL and PyTorch's stores that mean that another process has ended or does not answer.

These errors are plain RuntimeErrors without codes, so only their words say what happened.
"""

from __future__ import annotations

from enum import Enum


class Loss(Enum):
    """What happened to another process."""

    ENDED = "ended"
    SILENT = "does not answer"


SIGNS_OF_SILENCE = (
    "timed out waiting",  # gloo, and PyTorch's stores
    "wait timeout",
    "timeout waiting for key",
    "socket timeout",
    "operation timeout",
    "read timeout",
    "write timeout",
    "connect timeout",
    "barrier timeout",
    "timed out in monitoredbarrier",
    "application timeout caused pair closure",
    "timed out after",
    "connection timed out",
    "watchdog caught collective operation timeout",  # NCCL's process group
    "nccl operation timed out",
    "nccl timeout",
    "timed out in blocking wait",
    "timed out in call to wait",
    "operation timed out",
)
"""In lower case."""
SIGNS_OF_AN_END = (
    "connection closed by peer",  # gloo
    "connection closed by remote peer",  # NCCL
    "remote process exited",
    "ncclremoteerror",
    "nccl communicator was aborted",
    "nccl communicator encountered error set by processgroupnccl",
    "remote error detected from rank",
    "some nccl operations have failed or timed out",
    "watchdog thread terminated with exception",
    "got completion from peer",  # InfiniBand
    "connection reset by peer",  # the system's words, in gloo's, NCCL's and the stores'
    "connection refused",
    "broken pipe",
    "no route to host",
    "network is unreachable",
    "software caused connection abort",
    "transport endpoint is not connected",
)
"""In lower case."""
SIGNS_OF_OTHER_FAULTS = ("cuda error", "device-side assert", "illegal memory access", "ncclinvalidusage")
"""Faults of this process's own kernels, which NCCL's watchdog reports in the same words; in lower case."""


def find_loss(text: str) -> Loss | None:
    """What the words of an error say about another process; None if they say nothing about one."""
    said = text.lower()
    if any(sign in said for sign in SIGNS_OF_OTHER_FAULTS):
        return None
    if any(sign in said for sign in SIGNS_OF_SILENCE):
        return Loss.SILENT
    return Loss.ENDED if any(sign in said for sign in SIGNS_OF_AN_END) else None
