"""The exit codes of the processes of a launch, for job scripts.

`accelerate launch` and `torchrun` end with 1 whatever their processes end with. status.json has the code of a run that
has begun; a start that ends before (a mistyped flag, a machine that never joins) leaves no word there. So each process
also writes its code to a file of its own, in the folder that the job script names in `VARIABLE`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from glioma_dist.errors import ExitCode, InputError
from glioma_dist.files import cannot_read, make_folder, read_bytes, write_atomically

VARIABLE = "GLIOMA_DIST_EXIT_CODES"
MAX_BYTES = 16
BY_IMPORTANCE = (
    ExitCode.OUT_OF_MEMORY,
    ExitCode.NON_FINITE_LOSS,
    ExitCode.USER_ERROR,
    ExitCode.UNEXPECTED,
    ExitCode.UNAVAILABLE,
    ExitCode.STOPPED,
    ExitCode.FINISHED,
)
"""Which code is that of a launch whose processes end with several: the one that names the cause comes first. A process
that lost another ends with 69, and the other with the reason."""


def note_start() -> None:
    """Note that this process has begun, where a job script asks for it."""
    _write("")


def note_end(code: int) -> None:
    """Note the exit code of this process, where a job script asks for it."""
    _write(str(code))


def _write(text: str) -> None:
    folder = os.environ.get(VARIABLE)
    if not folder:
        return
    try:
        make_folder(Path(folder))
        write_atomically(Path(folder) / f"rank-{os.environ.get('RANK', '0')}", text)
    except InputError:
        return  # the job script then has status.json only


def read_exit_codes(folder: Path) -> dict[int, int | None]:
    """Return rank -> exit code of each process that has begun; None where it was killed, or still runs.

    Raises InputError where the folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise cannot_read(folder, error) from None
    found: dict[int, int | None] = {}
    for name in names:
        if match := re.fullmatch(r"rank-(\d{1,6})", name):
            text = read_bytes(folder / name, MAX_BYTES).decode(errors="replace").strip()
            if text and not re.fullmatch(r"\d{1,3}", text):
                raise InputError(f"{folder / name}: is no exit code; remove the folder before each launch")
            found[int(match[1])] = int(text) if text else None
    return found


def code_of_launch(codes: dict[int, int | None]) -> int:
    """Return the one code that says how a launch ended. A killed process counts as stopped: nothing names a fault."""
    ended = [ExitCode.STOPPED if code is None else code for code in codes.values()]
    unknown = [code for code in ended if code not in list(BY_IMPORTANCE)]
    return unknown[0] if unknown else int(min(ended, key=BY_IMPORTANCE.index))
