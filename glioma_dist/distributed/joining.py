"""Connect the processes of a launch, with time limits on waits for which the libraries have none."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from glioma_dist.distributed.run_command import as_run_error, end_at_once
from glioma_dist.distributed.signals import STOP_SIGNALS
from glioma_dist.errors import InputError, RunError, StopRequested, UnavailableError, one_line

SECONDS_OF_GRACE = 10.0
"""Extra time for a library to report its own timeout, with what it waited for."""
SECONDS_FOR_PYTHON_TO_NOTICE = 2.0
"""Time for Python's own signal handler to run. It cannot run while a library waits."""
WHO_IS_MISSING = re.compile(r"no answer from the ranks [\d, ]*\d|\d+/\d+ clients joined")
"""In the errors of `rendezvous` and of PyTorch's store."""
PORT_IN_USE = ("EADDRINUSE", "address already in use")
"""Parts of PyTorch's messages for a port that another program uses."""


@contextmanager
def bounded(seconds: float, ending: RunError) -> Iterator[None]:
    """Context manager: end this process with `ending` if its body takes longer than `seconds`.

    For calls that wait without a limit and that Python cannot interrupt: PyTorch's store if the process that holds it
    is stopped, and gloo if a process is lost while two connect.
    """
    timer = threading.Timer(seconds, end_at_once, [ending])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def stoppable() -> Iterator[None]:
    """Context manager: a stop signal ends this process even while the main thread waits in a library.

    Python's own handlers cannot interrupt such a wait. Use it only while there is nothing to save.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    left = threading.Event()

    def listen() -> None:
        with ours:
            while number := ours.recv(1):
                if number[0] in STOP_SIGNALS and not left.wait(SECONDS_FOR_PYTHON_TO_NOTICE):
                    end_at_once(StopRequested(f"received {signal.Signals(number[0]).name}"))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        left.set()
        theirs.close()
        listener.join()


@contextmanager
def joining(environment: Mapping[str, str], seconds: float) -> Iterator[None]:
    """Context manager: connect the processes of a launch in its body, or end this one soon after `seconds`.

    Raises InputError if the launch's port cannot be used, UnavailableError if other processes do not connect.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        yield
        return
    place = one_line(f"{environment.get('MASTER_ADDR', '')}:{environment.get('MASTER_PORT', '')}", 100)

    def late(who: str = "") -> UnavailableError:
        return UnavailableError(
            f"the {environment['WORLD_SIZE']} processes of this launch did not find each other at {place} within "
            f"{seconds:g} s{who}; check that all were started and can reach this address, then run the same command "
            "again"
        )

    began = time.monotonic()
    with stoppable(), bounded(seconds + SECONDS_OF_GRACE, late()):
        try:
            yield
        except RuntimeError as error:
            said = str(error)
            if any(sign in said for sign in PORT_IN_USE):
                raise InputError(
                    f"{place}: another program uses this port; give another one with --main_process_port, torchrun's "
                    "--master-port, or MASTER_PORT"
                ) from error
            # PyTorch's errors of a store or a connection have no codes.
            if type(error).__name__.startswith("Dist") or "gloo" in said.lower() or as_run_error(error) is not None:
                if time.monotonic() - began >= seconds:
                    missing = WHO_IS_MISSING.search(said)
                    raise late(f" ({missing[0]})" if missing else "") from error
                raise UnavailableError(
                    f"the {environment['WORLD_SIZE']} processes of this launch could not connect to one another at "
                    f"{place}: one ended or cannot be reached ({one_line(said, 200)}); run the same command again"
                ) from error
            raise


def check_place(environment: Mapping[str, str]) -> None:
    """Raises InputError if RANK, WORLD_SIZE and the other variables of a launch are invalid or contradict each
    other."""
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return
    world = _count(environment, "WORLD_SIZE", 1)
    for name, count in (("RANK", world), ("LOCAL_RANK", _count(environment, "LOCAL_WORLD_SIZE", 1, world))):
        if _count(environment, name, 0, 0) >= count:
            raise InputError(
                f"{name}={environment[name]}: with {count} processes it must be from 0 to {count - 1}; "
                "start with accelerate launch or torchrun, which set it"
            )
    if world > 1 and "RANK" in environment and "LOCAL_RANK" in environment:
        if not environment.get("MASTER_ADDR"):
            raise InputError("MASTER_ADDR is not set: start with accelerate launch or torchrun, which set it")
        if not 0 < _count(environment, "MASTER_PORT", 0) < 2**16:
            raise InputError(f"MASTER_PORT={environment['MASTER_PORT']}: give a port from 1 to {2**16 - 1}")


def _count(environment: Mapping[str, str], name: str, least: int, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) >= least):
        raise InputError(
            f"{name}={one_line(text, 80)}: give a number from {least}, or start with accelerate launch or torchrun, "
            "which set it"
        )
    return int(text)
