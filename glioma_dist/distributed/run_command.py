"""What each entry point is wrapped in: every end of a command is one line and an exit code that a scheduler can use."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

from glioma_dist.distributed.exit_codes import note_end, note_start
from glioma_dist.distributed.launcher import first_process_tells, first_process_told, tell_launcher
from glioma_dist.distributed.leaving import bound_exit, leave
from glioma_dist.distributed.lost_processes import Loss, find_loss
from glioma_dist.distributed.signals import STOP_SIGNALS, StopSignal
from glioma_dist.errors import (
    OUT_OF_MEMORY,
    ExitCode,
    InputError,
    Interrupted,
    MemoryFullError,
    RunError,
    StopRequested,
    UnavailableError,
    is_out_of_memory,
    one_line,
)
from glioma_dist.files import cannot_read, cannot_write

SECONDS_FOR_FIRST_PROCESS_TO_SPEAK = 5
SECONDS_FOR_FIRST_PROCESS_TO_REFUSE = 60
"""What all processes of a machine should refuse, for a first one that is slow to start."""
SIGN_OF_NO_MORE_THREADS = "Resource temporarily unavailable"
"""The system's words (EAGAIN) where PyTorch cannot start a thread: a limit on memory or on processes."""
CLOSED_OUTPUT = (errno.EPIPE, errno.EIO, errno.EBADF)
"""What writing to a closed pipe or terminal fails with."""


def run_command(function: Callable[[], None]) -> None:
    """Run an entry point. Errors that a user is meant to read become one `error:` line on stderr, a requested stop one
    `stopped:` line; the exit code is the error's (`errors.ExitCode`).

    Most errors are seen by every process of a launch at once. The first process then speaks for all, and the others
    wait a few seconds, because the launcher ends all as soon as one has ended. An error that only one of the others
    sees is told by that one, after the same few seconds; a line that the first process has told is not told again.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (until the process ends)
    # Names of files can hold bytes that are not UTF-8.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # One line for an error, not a stack of C++ besides. It has to be set before torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with StopSignal():
            note_start()
            function()
            sys.stdout.flush()
        _hear_no_more_requests()
        note_end(ExitCode.FINISHED)
        bound_exit(0)
    except SystemExit as error:
        code = ExitCode.FINISHED if error.code is None else error.code
        note_end(code if isinstance(code, int) else ExitCode.UNEXPECTED)
        raise
    except KeyboardInterrupt:
        _end(StopRequested("received SIGINT"))
    except (Exception, Interrupted) as error:
        ending = as_run_error(error)
        if ending is None:
            note_end(ExitCode.UNEXPECTED)
            bound_exit(1)
            raise
        _end(_with_advice(ending, error))


def _with_advice(ending: RunError, error: BaseException) -> RunError:
    """`ending` with the advice that an error behind it offers and that takes time to find; before, this process leaves
    the others of its launch, so that they do not wait for it."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    advise = next((each.advise for each in chain if isinstance(each, RunError) and each.advise is not None), None)
    if advise is None:
        return ending
    _hear_no_more_requests()
    for each in chain:  # what their frames hold keeps connections open
        traceback.clear_frames(each.__traceback__)
    gc.collect()
    leave()
    try:
        return type(ending)(f"{ending}; {advise()}")
    except Exception:  # the advice is an extra: the reason is known
        return ending


def _end(ending: RunError) -> None:
    is_first = os.environ.get("RANK", "0") == "0"

    def end_while_waiting(*_: object) -> None:
        """While this process waits for the first one to speak, a launcher may end it. Another machine's first process
        says why, because its launcher has ended all of that machine, and its lines are read there."""
        if os.environ.get("LOCAL_RANK") == "0" and not ending.is_shared:
            _print(ending)
        os._exit(ending.exit_code)

    _hear_no_more_requests(signal.SIG_IGN if is_first else end_while_waiting)
    _tell_of(ending)
    _hear_no_more_requests()  # Python forgets all other handlers at its end
    drop_closed_output()
    bound_exit(ending.exit_code)
    sys.exit(ending.exit_code)


def end_at_once(ending: RunError) -> None:
    """End this process as `ending` ends a command, from any thread, whatever the others are doing."""
    _tell_of(ending)
    os._exit(ending.exit_code)


def _tell_of(ending: RunError) -> None:
    """Print the one line, or let the first process do it."""
    note_end(ending.exit_code)
    is_first = os.environ.get("RANK", "0") == "0"
    if not is_first:
        time.sleep(SECONDS_FOR_FIRST_PROCESS_TO_SPEAK)
    if is_first or not _is_told_by_first(ending):
        _print(ending)


def _is_told_by_first(ending: RunError) -> bool:
    """Whether the first process says it. One that is slow to end has spoken, and its launcher has not ended this one
    yet."""
    if ending.is_alike:
        return first_process_tells(_line(ending), SECONDS_FOR_FIRST_PROCESS_TO_REFUSE)
    return ending.is_shared or first_process_told(_line(ending))


def _print(ending: RunError) -> None:
    line = _line(ending)
    _tell(f"{line}\n")
    tell_launcher(line)


def _line(ending: RunError) -> str:
    word = "stopped" if isinstance(ending, StopRequested) else "error"
    return f"{word}: {one_line(ending)}"


def _hear_no_more_requests(handler: signal.Handlers | Callable = signal.SIG_IGN) -> None:
    """The work is done, and a request to stop must not change the exit code any more: schedulers and launchers send the
    same one twice."""
    for number in STOP_SIGNALS:
        signal.signal(number, handler)


def _tell(line: str) -> None:
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except OSError:
        return  # nobody listens any more; the exit code says it


def drop_closed_output() -> None:
    """Let what is still to be printed go nowhere where nobody listens any more: Python would complain, and change the
    exit code, if it could not flush its output at the end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def as_run_error(error: BaseException, seconds: float | None = None) -> RunError | None:
    """What ends a command because of `error`, in words for its user; None where `error` is a fault of the program.

    seconds: how long processes wait for one another, where they do.
    """
    if isinstance(error, RunError):
        return error
    if isinstance(error, Interrupted):
        return error.request
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and not is_out_of_memory(error):
        return _of_the_system(error)
    if is_out_of_memory(error):
        return MemoryFullError(f"{OUT_OF_MEMORY} ({text[:200]}); use smaller images or batches, or more memory")
    if isinstance(error, RuntimeError):
        return _of_a_process(text, seconds)
    return None


def _of_the_system(error: OSError) -> RunError | None:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        where = "" if error.filename is None else f"{error.filename}: "
        return InputError(f"{where}{error.strerror}; raise the limit (ulimit -n), or give fewer workers")
    if error.filename is None and error.errno in CLOSED_OUTPUT:
        return StopRequested("standard output was closed")
    if error.filename is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return cannot_write(error.filename, error)
    if error.filename is not None:
        return cannot_read(error.filename, error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{error.strerror}; free space, then run the same command again")
    return None


def _of_a_process(text: str, seconds: float | None) -> RunError | None:
    again = "run the same command again"
    if SIGN_OF_NO_MORE_THREADS in text:
        return UnavailableError(
            f"the system gives this process no more threads or memory ({text[:200]}); see its limits (ulimit -u, "
            f"ulimit -v, the container's), then {again}"
        )
    loss = find_loss(text)
    if loss is Loss.SILENT:
        how_long = f" for {seconds:g} s" if seconds else ""
        return UnavailableError(f"another process of this run did not answer{how_long}; {again}")
    if loss is Loss.ENDED:
        return UnavailableError(f"another process of this run ended; its own line says why; {again}")
    return None
