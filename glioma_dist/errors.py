"""What can end a command, the exit code of each, and the one line that a user reads."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import IntEnum

MAX_LINE = 500
"""Characters of a message. File names and values from elsewhere can be of any length."""
LEAST_IN_BRACKETS = 20
"""Fewer characters of what stands in brackets say nothing."""


OUT_OF_MEMORY = "out of memory"
"""In messages, and as the result of a benchmark's cell."""
_SIGNS_OF_A_FULL_MEMORY = (
    "out of memory",  # PyTorch's allocators, CUDA itself, and NCCL with CUDA's words
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",  # the system's words (ENOMEM)
    "bad_alloc",
    "alloc_failed",  # cuBLAS, cuDNN, cuFFT, cuSOLVER, cuSPARSE
    "allocation_failed",  # cuDNN 9's codes, which name the memory
    "error_out_of_memory",
    "cudaerrormemoryallocation",
    "failed to cuda malloc",  # NCCL, after CUDA's words, of which it hands on the last line only
    "failed to cuda calloc",
    "failed to cuda host alloc",
)
"""In what PyTorch, CUDA's libraries, NCCL and the C++ library say, in lower case."""


class ExitCode(IntEnum):
    """Exit codes of every command. A scheduler can tell from them what to do next (docs/reliability.md)."""

    FINISHED = 0
    UNEXPECTED = 1
    """A fault of the program itself: a traceback says where."""
    PARTIAL = 1
    """Some images could not be used; all others are done. One `error:` line, no traceback."""
    USER_ERROR = 2
    """Something the user gave cannot be used; the same command would fail again."""
    OUT_OF_MEMORY = 3
    """The settings do not fit the device's memory."""
    NON_FINITE_LOSS = 4
    """The loss or a gradient is not finite (NaN or infinite)."""
    UNAVAILABLE = 69
    """A process, a worker or a store did not answer: try again (EX_UNAVAILABLE of sysexits.h)."""
    STOPPED = 75
    """Stopped as requested, all work saved: run the same command to resume (EX_TEMPFAIL of sysexits.h)."""


class RunError(Exception):
    """Ends a command with one line and an exit code, without a traceback (see `glioma_dist.distributed.run_command`).

    The message names the file, the sample, the value and what to do, in at most 500 characters.
    """

    exit_code = ExitCode.UNEXPECTED
    is_shared = False
    """Whether every process of the run ends with this same error, so that the first can speak for all."""
    is_alike = False
    """Whether the first process of this machine should end with this same error, because it depends on flags and
    environment alone: a process speaks for itself where the first turns out not to."""
    advise: Callable[[], str] | None = None
    """Finds advice, which takes seconds. A command calls it after it has closed the connections to other processes."""


class InputError(RunError):
    """Something the user gave cannot be used."""

    exit_code = ExitCode.USER_ERROR


class DiskFullError(InputError):
    """A disk, or this user's share of it, is full."""


class PartialError(RunError):
    """Some of what was asked could not be done; everything else is done and written."""

    exit_code = ExitCode.PARTIAL


class MemoryFullError(RunError):
    """A device's memory, or a machine's, is too small for what was asked."""

    exit_code = ExitCode.OUT_OF_MEMORY


class NonFiniteError(RunError):
    """The loss or a gradient is not finite (NaN or infinite)."""

    exit_code = ExitCode.NON_FINITE_LOSS


class UnavailableError(InputError):
    """A process, a worker or a store did not answer, as often as it was asked: the same command can end well later.

    An InputError, so that code which skips an unusable input skips this one too.
    """

    exit_code = ExitCode.UNAVAILABLE


class StopRequested(RunError):  # noqa: N818 (it is a request, not an error)
    """The system or the user asked the run to stop, and it did. The message is a status line."""

    exit_code = ExitCode.STOPPED


class Interrupted(BaseException):
    """Raised by a signal, wherever the program is at that moment. No Exception, because libraries catch those and try
    again."""

    def __init__(self, request: StopRequested) -> None:
        super().__init__(str(request))
        self.request = request


def as_error(exit_code: int, message: str) -> RunError:
    """The error of this exit code, to be raised on processes that heard of it from another."""
    kinds = (InputError, MemoryFullError, NonFiniteError, UnavailableError, StopRequested)
    return next((kind for kind in kinds if kind.exit_code == exit_code), RunError)(message)


@contextmanager
def noting(text: str) -> Generator[None]:
    """Context manager: an error of its body gets `text` as a note, which a traceback shows below the message."""
    try:
        yield
    except Exception as error:
        error.add_note(text)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the machine's memory is full."""
    # By name, because importing torch takes seconds.
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        "RuntimeError" in names and ("OutOfMemoryError" in names or says_memory_is_full(str(error)))
    )


def says_memory_is_full(text: str) -> bool:
    """Whether words of PyTorch, or of a process that has ended, say that a device's or the machine's memory is full."""
    said = text.lower()
    return any(sign in said for sign in _SIGNS_OF_A_FULL_MEMORY)


def one_line(text: object, limit: int = MAX_LINE) -> str:
    """`text` as one printable line of at most `limit` characters; what is too long is cut in the middle.

    Control characters and bytes of names that are not UTF-8 are shown as escapes (`\\xf6`).
    """
    whole = str(text)
    too_long = len(whole) > 8 * limit
    if too_long:  # cut first, because it can have millions of characters
        whole = whole[: 4 * limit] + whole[-4 * limit :]
    line = printable(re.sub(r"\s+", " ", whole).strip())
    if len(line) <= limit and not too_long:
        return line
    tail = limit // 3
    return f"{line[: limit - tail - 3]} … {line[-tail:]}"


def one_sentence(text: object, limit: int = MAX_LINE) -> str:
    """As `one_line`, but what stands in round brackets, such as the words of an exception, is cut first, so that the
    sentence around it stays whole."""
    whole = str(text)
    begin, end = whole.find(" (") + 2, whole.rfind("); ")
    end = end if end >= 0 else whole.rfind(")")  # advice may follow, with brackets of its own
    if len(whole) > limit and 2 <= begin < end:
        room = limit - len(whole) + end - begin
        inside = one_line(whole[begin:end], room) if room >= LEAST_IN_BRACKETS else "…"
        whole = f"{whole[:begin]}{inside}{whole[end:]}"
    return one_line(whole, limit)


def shown(value: object) -> str:
    """A value from elsewhere as text, short enough for a message."""
    try:
        return one_line(repr(value), 80)
    except RecursionError:
        return "something nested too deeply"
    except ValueError:
        return "a number of thousands of digits"  # which Python does not write


def printable(text: object) -> str:
    """`text`, a file's name for example, with bytes that are not UTF-8 and control characters shown as escapes."""
    shown = re.sub(r"[\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", str(text))
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: f"\\x{ord(found[0]):02x}", shown)
