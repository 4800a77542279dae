"""How the processes of a launch find each other, and a bound on waits for which libraries have none."""

from __future__ import annotations

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
"""That libraries get beyond their own bound, to say themselves what they waited for."""
SECONDS_FOR_PYTHON_TO_NOTICE = 2.0
"""A signal. It does not, as long as a library waits."""
PORT_IN_USE = ("EADDRINUSE", "address already in use")
"""In what PyTorch says of a port that another program has."""


@contextmanager
def bounded(seconds: float, ending: RunError) -> Iterator[None]:
    """Within it, this process ends as by `ending` once so many seconds have passed.

    For calls that wait without a bound, out of Python's reach: PyTorch's store, where the process that holds it was
    stopped, and gloo, where a process is lost while the two connect.
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
    """Within it, a request to stop ends this process also where the main thread waits in a library, which Python's own
    handlers would not interrupt. For times at which there is nothing to save."""
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
    """Within it, the processes of a launch find each other, or this one ends: none waits much longer than `seconds`.

    Raises InputError where the launch's port cannot be used, UnavailableError where other processes do not come.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        yield
        return
    place = one_line(f"{environment.get('MASTER_ADDR', '')}:{environment.get('MASTER_PORT', '')}", 100)
    late = UnavailableError(
        f"the {environment['WORLD_SIZE']} processes of this launch did not find each other at {place} within "
        f"{seconds:g} s; see whether all were started and can reach it, then run the same command again"
    )
    began = time.monotonic()
    with stoppable(), bounded(seconds + SECONDS_OF_GRACE, late):
        try:
            yield
        except RuntimeError as error:
            said = str(error)
            if any(sign in said for sign in PORT_IN_USE):
                raise InputError(
                    f"{place}: another program has this port; give another one with --main_process_port, torchrun's "
                    "--master-port, or MASTER_PORT"
                ) from error
            # PyTorch's own errors of a store or a connection, which it does not number.
            if type(error).__name__.startswith("Dist") or "gloo" in said.lower() or as_run_error(error) is not None:
                if time.monotonic() - began >= seconds:
                    raise late from error
                raise UnavailableError(
                    f"the {environment['WORLD_SIZE']} processes of this launch could not connect to one another at "
                    f"{place}: one ended, or cannot be reached ({one_line(said, 200)}); run the same command again"
                ) from error
            raise


def check_place(environment: Mapping[str, str]) -> None:
    """Raises InputError where the variables that tell a process its place in a launch cannot be used together."""
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return
    world = _count(environment, "WORLD_SIZE", 1)
    for name, count in (("RANK", world), ("LOCAL_RANK", _count(environment, "LOCAL_WORLD_SIZE", 1, world))):
        if _count(environment, name, 0, 0) >= count:
            raise InputError(
                f"{name}={environment[name]}: {count} processes are counted from 0 to {count - 1}; "
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
