"""What a process tells the launcher that started it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glioma_dist.errors import InputError
from glioma_dist.files import read_bytes, write_atomically

REPORT_VARIABLE = "TORCHELASTIC_ERROR_FILE"
"""PyTorch's launcher sets it for each process: a file in a folder of its own that it removes at the end."""

MAX_LAUNCH_FILE_BYTES = 2**20


def check_launch_file(flag: str, file: Path) -> None:
    """Raises InputError where a file is none that `accelerate launch --config_file` takes."""
    import yaml  # accelerate brings it

    try:
        settings = yaml.safe_load(read_bytes(file, MAX_LAUNCH_FILE_BYTES))
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError):  # the last two of PyYAML itself
        settings = None
    if not isinstance(settings, dict) or "compute_environment" not in settings:
        raise InputError(f"{flag} {file}: is no file of accelerate's settings; name one of accelerate_configs/")


@contextmanager
def alike_on_a_machine() -> Iterator[None]:
    """Context manager: what its body refuses, all processes of a launch on one machine refuse: it depends on flags and
    environment alone. The first process of each machine speaks for the others; where a launcher shows that it does not,
    as for a file that only one process cannot read, each speaks for itself."""
    try:
        yield
    except InputError as error:
        error.is_shared = error.is_alike = os.environ.get("LOCAL_RANK", "0") != "0"
        raise


def first_process_told(line: str) -> bool:
    """Whether the first process of this launch on this machine has left the same line for the launcher."""
    file = _file_of_first_process()
    return file is not None and _told(file) == line


def first_process_tells(line: str, seconds: float) -> bool:
    """Wait at most `seconds` for the first process of this launch on this machine to leave a line for the launcher.
    Returns whether it is the same one; True where no launcher can say."""
    file, deadline = _file_of_first_process(), time.monotonic() + seconds
    if file is None:
        return True
    while (told := _told(file)) is None and time.monotonic() < deadline:
        time.sleep(min(0.2, seconds))
    return told == line


def _file_of_first_process() -> Path | None:
    """The file of each process is in a folder of its own, which has its local rank as its name."""
    file, rank = Path(os.environ.get(REPORT_VARIABLE, "")), os.environ.get("LOCAL_RANK", "0")
    return file.parent.with_name("0") / file.name if rank != "0" and file.parent.name == rank else None


def _told(file: Path) -> str | None:
    try:
        return json.loads(read_bytes(file, MAX_LAUNCH_FILE_BYTES))["message"]["message"]
    except (OSError, InputError, ValueError, KeyError, TypeError):
        return None


def tell_launcher(line: str) -> None:
    """Have the launcher of several processes end its report with `line`.

    `accelerate launch` of several processes and `torchrun` print a traceback of their own and a report after a process
    has failed. The report ends with what that process left in this file, and says "To enable traceback see: https…"
    where it left nothing. A launcher of one process reads no such file: there `accelerate launch --quiet` prints
    nothing after the process's own line.
    """
    file = os.environ.get(REPORT_VARIABLE)
    if not file:
        return
    # The form that torch.distributed.elastic.multiprocessing.errors.ErrorHandler writes.
    metadata = {"py_callstack": line, "timestamp": str(int(time.time()))}
    try:
        write_atomically(Path(file), json.dumps({"message": {"message": line, "extraInfo": metadata}}))
    except InputError:
        return  # the line is on the screen already
