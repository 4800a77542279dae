"""Read images in a process of its own: a decoder that crashes, hangs or fills the memory there costs one image and one
line, and the next image is read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from glioma_dist.data.images.decoding import DecodedImage
from glioma_dist.data.images.limits import check_size
from glioma_dist.data.images.microscope import Scene
from glioma_dist.data.images.worker import NoAnswerError, Wanted, receive, receive_into, send
from glioma_dist.errors import InputError, UnavailableError

START_SECONDS = 120.0
READ_SECONDS = 120.0
"""Time for one image. The largest that is read takes some ten seconds from a local disk."""
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from glioma_dist.data.images.worker import serve; serve(int(sys.argv[1]))"
)


class Description(NamedTuple):
    """Asks which images a file holds."""

    path: str | Path


Question = str | Path | Wanted | Description


class ImageReader:
    """Reads images one after another in a process of its own, which starts with the first one; a context manager.

    seconds: time limit for one image. An image that ends or stalls the process gives an InputError, and the next one
    a new process. The object may be made before a fork: each process then starts its own.
    """

    def __init__(self, seconds: float = READ_SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen | None = None
        self._connection: socket.socket | None = None
        self._owner = os.getpid()
        self._asked: Question | None = None  # what the process is already at work on

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, path: Question) -> DecodedImage:
        """Read a TIFF or PNG of 8 or 16 bits, or a JPEG; `Wanted` asks for a page of a stack, or of an OME-Zarr.

        Returns its pixels as they are stored, uint8 or uint16, (H, W) or (H, W, 3) RGB, and notes: what is odd about
        the file, in words for the user, for example that it says how the picture is to be turned.

        Raises InputError, naming the file, where it is missing, no plain file, damaged, cut short, too large, a stack
        of several pages, of another kind of number, or where the decoder crashes or takes too long; UnavailableError
        where the process cannot be started.
        """
        return self._read(path, None)

    def read_each(self, paths: Iterable[str | Path | Wanted]) -> Iterator[DecodedImage | InputError]:
        """Read many images, each decoded while the caller works on the one before. Yields, for each path in order,
        the image, or the InputError that `read` would raise. `Wanted` asks for pages of stacks, and for masks."""
        following = iter(paths)
        path = next(following, None)
        while path is not None:
            after = next(following, None)
            try:
                found: DecodedImage | InputError = self._read(path, after)
            except UnavailableError:
                raise
            except InputError as error:
                found = error
            yield found
            path = after

    def describe(self, path: str | Path) -> list[Scene]:
        """The images of a file of a microscope's own program. Raises InputError as `read` does."""
        try:
            self._start(Description(path))
            return [
                Scene(*each)._replace(channels=tuple(each[7])) for each in self._answer(Description(path))["scenes"]
            ]
        except NoAnswerError as error:
            raise _crashed(path, self._give_up(path, error)) from None

    def _read(self, question: Question, after: Question | None) -> DecodedImage:
        """after: the image that is asked for next; the process begins with it at once."""
        path = _path_of(question)
        try:
            was_used = self._start(question)
            return self._ask(question, after)
        except NoAnswerError as error:
            how = self._give_up(path, error)
        if was_used:
            # An earlier image may have left the process damaged. Pixels that two fresh ones agree on are this image's;
            # a decoder that reads memory which is not its own finds others each time.
            with contextlib.suppress(NoAnswerError):
                first, second = self._ask_afresh(question), self._ask_afresh(question)
                if np.array_equal(first.pixels, second.pixels):
                    return second
            self._end()
        raise _crashed(path, how)

    def _ask_afresh(self, question: Question) -> DecodedImage:
        self._end()
        self._start(question)
        return self._ask(question, None)

    def _give_up(self, path: str | Path, error: NoAnswerError) -> str:
        """How the process ended that did not answer. Raises InputError where it was too slow."""
        how = self._end(0.0 if error.late else 2.0)
        if error.late:
            raise InputError(
                f"{path}: not decoded within {self._seconds:.0f} s; save it again as a TIFF without compression"
            ) from None
        return how

    def close(self) -> None:
        """End the process. The next `read` starts another one."""
        if self._process is not None:
            self._end()

    def _start(self, question: Question) -> bool:
        """Have a process to ask for an image. Returns whether it has decoded images before."""
        if self._process is not None and self._owner == os.getpid():
            if self._asked in (None, question):
                return True
            self._end()  # it is at work on an image that is not wanted any more
        self._owner, self._asked = os.getpid(), None  # after a fork: what the parent's process was asked
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        descriptor = theirs.fileno()
        command = [sys.executable, "-P", "-c", PROGRAM, str(descriptor), json.dumps(sys.path)]
        try:
            # A session of its own: what the terminal sends to this command is not for it.
            self._process = subprocess.Popen(
                command,
                pass_fds=[descriptor],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise UnavailableError(f"the process that decodes images cannot be started ({error.strerror})") from None
        finally:
            theirs.close()
        self._connection = ours
        try:
            receive(ours, START_SECONDS)
        except NoAnswerError as error:
            how = f"nothing within {START_SECONDS:.0f} s" if error.late else self._end(2.0)
            self.close()
            raise UnavailableError(f"the process that decodes images did not start ({how}); try again") from None
        return False

    def _ask(self, question: Question, after: Question | None) -> DecodedImage:
        """One question and its image. Raises NoAnswerError where there is none, and InputError."""
        deadline = time.monotonic() + self._seconds
        answer = self._answer(question, after)
        height, width, *channels = answer["shape"]
        kind = np.dtype({"uint8": np.uint8, "uint16": np.uint16}[answer["dtype"]])
        check_size(width, height, _path_of(question), channels[0] if channels else 1, kind.itemsize)
        pixels = np.empty(answer["shape"], kind)
        receive_into(self._connection, memoryview(pixels).cast("B"), deadline)
        return DecodedImage(pixels, tuple(answer["notes"]), answer["orientation"], answer.get("num_cells"))

    def _answer(self, question: Question, after: Question | None = None) -> dict:
        """One question and its answer, without pixels. Raises as `_ask`."""
        try:
            for each in ([] if self._asked == question else [question]) + ([] if after is None else [after]):
                send(self._connection, _as_message(each))
        except OSError:
            raise NoAnswerError(late=False) from None
        self._asked = after
        answer = receive(self._connection, self._seconds)
        if "error" in answer:
            if answer["is_full"]:
                self._end()  # what it holds is not given back to the system
            raise InputError(answer["error"])
        return answer

    def _end(self, seconds: float = 0.0) -> str:
        """End the process, which first gets time to end by itself, and say how it ended."""
        process, connection = self._process, self._connection
        self._process = self._connection = self._asked = None
        if connection is not None:
            connection.close()
        if process is None or self._owner != os.getpid():
            return "it belongs to another process"
        if seconds:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # One that waits for a dead disk cannot be killed; it is left alone.
            process.wait(5)
        code = process.returncode
        if code is None:
            return "it cannot be ended"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _path_of(question: Question) -> str | Path:
    return question.path if isinstance(question, Wanted | Description) else question


def _crashed(path: str | Path, how: str) -> InputError:
    return InputError(
        f"{path}: the decoder crashed on it ({how}): the file is damaged or in a rare format; if another program "
        "can open it, save it from there as a new TIFF or PNG"
    )


def _as_message(question: Question) -> dict:
    """A question as the process is asked it."""
    if isinstance(question, Description):
        return {"path": os.path.abspath(question.path), "where": str(question.path), "describe": True}
    if not isinstance(question, Wanted):
        return {"path": os.path.abspath(question), "where": str(question)}
    how = {name: value for name, value in question._asdict().items() if name != "path"}
    return {"path": os.path.abspath(question.path), "where": str(question.path), "how": how}


def read_image(path: str | Path) -> np.ndarray:
    """Read one TIFF, PNG or JPEG as uint8 or uint16, (H, W) or (H, W, 3) RGB; see `ImageReader.read`.

    Starts a process for this one image, a tenth of a second; for several images use an `ImageReader`.
    """
    with ImageReader() as reader:
        return reader.read(path).pixels
