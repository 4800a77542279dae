"""A process that imports the libraries once and forks fresh runs of the commands, on request.

It is started by `forks.Forks` as `python fork_server.py DESCRIPTOR MODULE…`, with the modules to import first.
Importing PyTorch takes some ten seconds; a fork takes milliseconds. A forked run ends as an interpreter does, with its
exit code, its last flush of the streams and what it registered with atexit, which children of `multiprocessing` skip.

The socket carries one JSON object a packet. A request has the keys of `Job` and two or three descriptors: stdout,
stderr, and a socket for the file calls (`file_calls.py`). Answers are {"number", "pid"} when a run has started, and
{"number", "status", "peak_kib", "seconds"} when it has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

MAX_REQUEST_BYTES = 2**18
POLL_SECONDS = 0.02
LEFT_TO_THE_STARTER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Job:
    """What a forked process is to do."""

    number: int
    target: str
    """A script of the repository, as train.py, or "module:function" of the server's paths."""
    arguments: list[Any]
    """Of the script's command line, or of the function."""
    environment: dict[str, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    """By the name of the resource, as FSIZE."""
    user: int | None = None
    """The run's user and group; the server's own where it is None."""
    shared_memory_bytes: int | None = None
    """Size of a /dev/shm of the run's own."""
    folder: str | None = None
    """Where it works; the repository where it is None."""
    prelude: list[Any] | None = None
    """"module:function" and its arguments, called before the target: for constants such as how long the program
    waits."""
    descriptors: list[int] = field(default_factory=list)


def serve(asked: socket.socket) -> Job | None:
    """Fork for each request and report each end. Returns the job in a forked process, None in the server at the end."""
    running: dict[int, tuple[int, float]] = {}
    while True:
        readable, _, _ = select.select([asked], [], [], POLL_SECONDS if running else None)
        if readable:
            data, descriptors, _, _ = socket.recv_fds(asked, MAX_REQUEST_BYTES, 3)
            if not data:
                for pid in running:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                return None
            job = Job(**json.loads(data), descriptors=descriptors)
            pid = os.fork()
            if pid == 0:
                asked.close()
                return job
            for descriptor in descriptors:
                os.close(descriptor)
            running[pid] = (job.number, time.monotonic())
            asked.send(json.dumps({"number": job.number, "pid": pid}).encode())
        while running:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                break
            number, start = running.pop(pid)
            report = {
                "number": number,
                "status": os.waitstatus_to_exitcode(status),
                "peak_kib": used.ru_maxrss,
                "seconds": time.monotonic() - start,
            }
            asked.send(json.dumps(report).encode())


def do(job: Job) -> None:
    """Become what the job asks for, and do it."""
    # A session of its own: a signal to the group reaches the run and its workers, and not who started the server.
    os.setsid()
    for number in LEFT_TO_THE_STARTER:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(job.descriptors[:2], 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # The server's streams remember whether what they were opened for can be sought in.
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.update(job.environment)
    tempfile.tempdir = None  # it may have been asked for by a library, before TMPDIR was set
    if job.shared_memory_bytes is not None:
        _mount_own_shared_memory(job.shared_memory_bytes)
    for name, value in job.limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if job.user is not None:
        os.setgroups([])
        os.setresgid(job.user, job.user, job.user)
        os.setresuid(job.user, job.user, job.user)
    if len(job.descriptors) == 3:
        from file_calls import install_filter

        with socket.socket(fileno=job.descriptors[2]) as to_parent:
            socket.send_fds(to_parent, [b"listener"], [listener := install_filter()])
            os.close(listener)
    if job.folder is not None:
        os.chdir(job.folder)
    if job.prelude is not None:
        name, *arguments = job.prelude
        _function(name)(*arguments)
    if ":" in job.target:
        _function(job.target)(*job.arguments)
    else:
        sys.argv = [job.target, *job.arguments]
        runpy.run_path(str(Path(__file__).resolve().parents[2] / job.target), run_name="__main__")


def end_after(work: Callable[[], object]) -> NoReturn:
    """Do `work` and end this process as an interpreter does: with its exit code, what it registered with atexit, and
    a last flush.

    The objects of the libraries that a fork shares with its server are left alone: to destroy them one by one takes
    four seconds.
    """
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 255)


def _function(name: str) -> Callable:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _mount_own_shared_memory(num_bytes: int) -> None:
    """A small /dev/shm that only this process and its children see."""
    import ctypes

    clone_newns, ms_rec, ms_private = 0x20000, 0x4000, 0x40000
    libc = ctypes.CDLL(None, use_errno=True)
    mounts = (
        lambda: libc.unshare(clone_newns),
        lambda: libc.mount(b"none", b"/", None, ms_rec | ms_private, None),
        lambda: libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, f"size={num_bytes}".encode()),
    )
    for mount in mounts:
        if mount() != 0:
            raise OSError(ctypes.get_errno(), "cannot mount a /dev/shm of its own")


def main() -> None:
    asked = socket.socket(fileno=int(sys.argv[1]))
    # They come to the whole group of who started it, who then ends, and so closes the socket. That ends this server and
    # its runs.
    for number in LEFT_TO_THE_STARTER:
        signal.signal(number, signal.SIG_IGN)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    asked.send(b'{"ready": true}')
    job = serve(asked)
    if job is not None:
        end_after(lambda: do(job))


if __name__ == "__main__":
    main()
