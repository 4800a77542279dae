"""Runs of the commands, forked from a server that has imported the libraries (`fork_server.py`)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from file_calls import FileCall, Moment, Supervisor

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parents[1]
PRELOADED = (
    "torch.distributed",
    "accelerate",
    "glioma_dist.model.encoders.timm_models",
    "albumentations",
    "fsspec.asyn",
    "aiohttp",
    "glioma_dist.training.loop",
    "glioma_dist.evaluation.protocol",
    "glioma_dist.inference.predict",
    "glioma_dist.data.convert.conversion",
    "glioma_dist.report.curves",
)
"""What the commands import."""
SECONDS_TO_IMPORT = 300
SECONDS_TO_DIE = 20


@dataclass(frozen=True)
class Ended:
    """How a run ended. code: its exit code; of a signal minus its number. peak_mib: largest resident memory of the run
    or of one of its workers, what the server had imported included."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    peak_mib: float
    calls: tuple[FileCall, ...] = ()


class Run:
    """A run that was started."""

    def __init__(self, pid: int, folder: Path, number: int) -> None:
        self.pid, self.folder, self.number = pid, folder, number
        self.supervisor: Supervisor | None = None
        self.report: dict = {}
        self.ended = threading.Event()

    @property
    def stdout(self) -> str:
        return (self.folder / f"{self.number}.stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self.folder / f"{self.number}.stderr").read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def workers(self) -> list[int]:
        """Pids of its children, oldest first."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()))
        return []

    def wait(self, seconds: float) -> Ended:
        """Raises AssertionError, and kills it, where it has not ended after so many seconds."""
        in_time = self.ended.wait(seconds)
        if not in_time:
            where = self.stack()
            self.kill_session()
            self.ended.wait(SECONDS_TO_DIE)
        assert in_time, f"did not end within {seconds:g} s; {where}\n{self.stdout[-1500:]}\n{self.stderr[-3000:]}"
        calls = ()
        if self.supervisor is not None:
            if self.supervisor.failure is not None:
                raise self.supervisor.failure
            calls = tuple(self.supervisor.calls)
        found = self.report
        return Ended(found["status"], self.stdout, self.stderr, found["seconds"], found["peak_kib"] / 1024, calls)

    def stack(self) -> str:
        """What the kernel says that it waits for."""
        with contextlib.suppress(OSError):
            return f"it waits in {Path(f'/proc/{self.pid}/wchan').read_text() or 'user space'}"
        return "gone"

    def kill_session(self) -> None:
        """Kill the run and all that it started."""
        for pid in session_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def session_of(session: int) -> list[int]:
    """Pids of a session's processes that live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


class Forks:
    """The server, and the runs that it has forked. Use as a context.

    folder: for what the runs print. paths: where the server finds modules beside the repository's. preloaded: modules
    that it imports.
    """

    def __init__(self, folder: Path, paths: Sequence[Path] = (), preloaded: Sequence[str] = PRELOADED) -> None:
        self.folder, self.paths, self.preloaded = folder, paths, preloaded
        self.runs: dict[int, Run] = {}
        self._started: dict[int, threading.Event] = {}
        self._lock = threading.Lock()
        self._count = 0

    def __enter__(self) -> Forks:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = [*map(str, (REPOSITORY, FOLDER, *self.paths)), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / "fork_server.py"), str(theirs.fileno()), *self.preloaded],
            cwd=REPOSITORY,
            env=environment,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._socket = ours
        ours.settimeout(SECONDS_TO_IMPORT)
        assert json.loads(ours.recv(2**16)) == {"ready": True}
        ours.settimeout(None)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for run in self.runs.values():
            run.kill_session()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        try:
            self.process.wait(SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def start(
        self,
        target: str,
        arguments: list[Any],
        environment: dict[str, str] | None = None,
        moments: list[Moment] | None = None,
        watched: Path | None = None,
        stdout: int | None = None,
        **job: Any,
    ) -> Run:
        """Fork a run. moments: what is to happen at which of its file calls, those below `watched` being listed.
        stdout: a descriptor to write to instead of a file. job: further fields of `fork_server.Job`."""
        with self._lock:
            number = self._count = self._count + 1
            run = self.runs[number] = Run(0, self.folder, number)
            started = self._started[number] = threading.Event()
        descriptors = [os.open(self.folder / f"{number}.{name}", os.O_WRONLY | os.O_CREAT) for name in STREAMS]
        opened = list(descriptors)
        if stdout is not None:
            descriptors[0] = stdout
        ours = None
        if moments is not None or watched is not None:
            ours, theirs = socket.socketpair()
            descriptors.append(theirs.fileno())
        request = {
            "number": number,
            "target": target,
            "arguments": [
                argument if isinstance(argument, dict | list | int) else str(argument) for argument in arguments
            ],
            "environment": environment or {},
            **job,
        }
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
        for descriptor in opened:
            os.close(descriptor)
        assert started.wait(60), "the server forks no more"
        if ours is not None:
            theirs.close()
            ours.settimeout(60)
            _, listeners, _, _ = socket.recv_fds(ours, 64, 1)
            assert listeners, f"no file calls to hold: {run.stderr}"
            run.supervisor = Supervisor(listeners[0], moments or [], str(watched or self.folder))
            run.supervisor.start()
            ours.close()
        return run

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._socket.recv(2**16):
                report = json.loads(data)
                run = self.runs[report["number"]]
                if "pid" in report:
                    run.pid = report["pid"]
                    self._started[report["number"]].set()
                else:
                    run.report = report
                    run.ended.set()


STREAMS = ("stdout", "stderr")


def wait_until(true: Any, seconds: float = 60, what: str = "") -> None:
    """Wait until `true()` is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited in vain for {seconds:g} s: {what}"
        time.sleep(0.02)
