"""All faults, and which of them run with every test."""

from __future__ import annotations

from dataclasses import replace

import checkpoints
import disk
import inputs
import signals_and_processes
import streams

CI = {
    "SIGTERM at a step",
    "SIGHUP in validation",
    "SIGKILL between the renames of a checkpoint",
    "SIGKILL to rank 1 of two",
    "SIGSEGV in a worker",
    "ENOSPC at the row of a step",
    "EDQUOT at a checkpoint's files",
    "run folder removed in mid-run",
    "optimizer of another run",
    "every checkpoint damaged",
    "store out for 2 s",
    "gzip bomb",
    "poisoned cache",
    "pipes, devices and links among images",
    "deeply nested JSON as index.json",
}
"""One or two of each kind: two minutes on an idle core."""
_FOUND = [*signals_and_processes.FAULTS, *disk.FAULTS, *checkpoints.FAULTS, *streams.FAULTS, *inputs.FAULTS]
assert {fault.name for fault in _FOUND} >= CI, CI - {fault.name for fault in _FOUND}
ALL_FAULTS = [replace(fault, ci=fault.name in CI) for fault in _FOUND]
