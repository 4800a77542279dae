"""The starts of one training: its processes, forked here or started by a real launcher, and how they ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from file_calls import Moment
from forks import REPOSITORY, Forks, Run
from run_contents import status

STEPS, EVAL_EVERY, SAVE_EVERY, BATCH, IMAGES = 24, 6, 2, 6, 12
SCRIPT = Path(__file__).resolve().with_name("chaos_recording.py")
FLAGS = {
    "data.size": "64x64",
    "data.transform": "random-resized-crop",
    "data.augment": "flips sharpen contrast",
    "data.workers": "1",
    "model.encoder": "mit_tiny",
    "model.decoder-channels": "16 16 8 8 8",
    "batch-size": BATCH,
    "lr": 1e-3,
    "epochs": 1000,
    "max-steps": STEPS,
    "eval-every": EVAL_EVERY,
    "save-every": SAVE_EVERY,
    "scale.timeout-s": 30,
}
UNUSED = ("home", "temporary", "working")
"""Folders that a run could write to, and must not: the user's, for temporary files, and that it was started in."""
_PORTS = count(5000 + os.getpid() % 4000)
"""Below those that the system gives to connections, and below those of the tests."""
LINE = re.compile(r"^(?:error|stopped): .*$", re.MULTILINE)
WARNING = re.compile(r"^warning: .*$", re.MULTILINE)
SECONDS_BETWEEN_LOOKS = 0.02


@dataclass(frozen=True)
class Ended:
    """How a start ended. codes: of each process, or of the launcher; minus a signal's number for a kill. lines: the
    program's own last lines. warnings: the lines of its warnings. traceback: whether a process printed one. state: what
    status.json says."""

    codes: tuple[int, ...]
    lines: tuple[str, ...]
    warnings: tuple[str, ...]
    traceback: bool
    state: dict | None
    output: str


@dataclass
class Place:
    """Where a campaign takes place: the fork server, the URL of the store, and folders."""

    forks: Forks
    url: str
    folder: Path
    records: Path = field(init=False)

    def __post_init__(self) -> None:
        self.records = self.folder / "records"
        for name in (*UNUSED, "records", "output"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def flags(self, out: Path) -> list[str]:
        """The command, the same at every start."""
        named = {"data.train": f"{self.url}/train", "data.val": f"{self.url}/val", **FLAGS, "out": out}
        return [part for name, value in named.items() for part in (f"--{name}", *str(value).split(" "))]

    def environment(self) -> dict[str, str]:
        home, temporary, _ = (str(self.folder / name) for name in UNUSED)
        folders = {"HOME": home, "TMPDIR": temporary, "XDG_CACHE_HOME": home, "HF_HOME": home}
        return {**folders, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def strangers(self) -> list[str]:
        """What a run wrote to folders that it must not write to.

        A process that is killed while Python looks for a folder for temporary files leaves the file it tried it with;
        torchrun, when it is killed, the folder of its logs; PyTorch an empty folder for compiled code;
        matplotlib its table of fonts.
        """
        known = re.compile(
            r"temporary/([a-z0-9_]{8}|torchelastic_.*|torchinductor_[^/]*|pymp-.*)$"
            r"|home/(\.config|\.cache|(\.config/|\.cache/)?matplotlib.*)$"
        )
        found = [path for name in UNUSED for path in (self.folder / name).rglob("*")]
        return [name for path in found if not known.match(name := str(path.relative_to(self.folder)))]


class Start:
    """One start of the command with some processes."""

    def __init__(self, place: Place, number: int, out: Path, processes: int) -> None:
        self.place, self.number, self.out, self.processes = place, number, out, processes
        self.began, self.began_at = time.monotonic(), time.time()

    def ranks(self) -> list[int]:
        """Pids of its training processes that live, in the order of their ranks."""
        raise NotImplementedError

    def has_ended(self) -> bool:
        raise NotImplementedError

    def ended(self) -> Ended:
        """How it ended; call it once `has_ended` says so."""
        raise NotImplementedError

    def kill(self) -> None:
        """Kill all that is left of it."""
        raise NotImplementedError

    launcher: int | None = None
    """Pid of the launcher."""

    def workers(self) -> list[int]:
        """Pids of the processes that read data; a worker leads a process group of its own."""
        return [child for rank in self.ranks() for child in children(rank) if _group(child) == child]

    def wait(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Wait for its end. Returns whether it came; what is left after so many seconds is killed. meanwhile: called
        again and again."""
        until = time.monotonic() + seconds
        while not self.has_ended() and time.monotonic() < until:
            meanwhile()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        in_time = self.has_ended()
        self.kill()
        return in_time


class Forked(Start):
    """Processes that were forked from the server of imported libraries."""

    def __init__(
        self,
        place: Place,
        number: int,
        out: Path,
        processes: int,
        moments: list[Moment] | None = None,
        stop_after: int = 0,
    ) -> None:
        super().__init__(place, number, out, processes)
        port = free_port()
        self.runs: list[Run] = []
        for rank in range(processes):
            launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            self.runs.append(
                place.forks.start(
                    "chaos_recording:train_in_fork",
                    [place.records, number, stop_after, *place.flags(out)],
                    place.environment() | {name: str(value) for name, value in launch.items() if processes > 1},
                    moments if rank == 0 else None,
                    out if rank == 0 and moments is not None else None,
                    folder=str(place.folder / "working"),
                )
            )

    def ranks(self) -> list[int]:
        return [run.pid for run in self.runs if not run.ended.is_set()]

    def has_ended(self) -> bool:
        return all(run.ended.is_set() for run in self.runs)

    def ended(self) -> Ended:
        printed = [run.stderr for run in self.runs]
        return ended_of([run.report["status"] for run in self.runs], "\n".join(printed), self.out)

    def kill(self) -> None:
        for run in self.runs:
            run.kill_session()
            run.ended.wait(20)


class Launched(Start):
    """Processes that torchrun or `accelerate launch` started, each a fresh interpreter."""

    def __init__(self, place: Place, number: int, out: Path, processes: int, launcher: str) -> None:
        super().__init__(place, number, out, processes)
        self._known: dict[int, int] = {}
        """Rank -> pid, also of those whose launcher was killed."""
        files = [place.folder / "output" / f"launch-{number}.{name}" for name in ("stdout", "stderr")]
        self._stderr = files[1]
        with contextlib.ExitStack() as stack:
            stdout, stderr = (stack.enter_context(open(path, "wb")) for path in files)
            self._process = subprocess.Popen(
                [*launch_command(launcher, processes), str(SCRIPT), str(place.records), str(number), *place.flags(out)],
                cwd=place.folder / "working",
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **place.environment(), "PYTHONPATH": str(REPOSITORY)},
                start_new_session=True,
            )
        self.launcher = self._process.pid

    def ranks(self) -> list[int]:
        for child in children(self._process.pid):
            with contextlib.suppress(OSError):
                if str(SCRIPT) in Path(f"/proc/{child}/cmdline").read_text():
                    rank = re.search(r"(?:^|\0)RANK=(\d+)", Path(f"/proc/{child}/environ").read_text())
                    self._known[int(rank[1]) if rank else 0] = child
        return [pid for _, pid in sorted(self._known.items()) if is_alive(pid)]

    def has_ended(self) -> bool:
        ranks = self.ranks()  # first: those that a launcher leaves behind are its children no more
        return self._process.poll() is not None and not ranks

    def ended(self) -> Ended:
        return ended_of([self._process.returncode], self._stderr.read_text(errors="replace"), self.out, launched=True)

    def kill(self) -> None:
        for pid in (*self.ranks(), *([self._process.pid] if self._process.poll() is None else [])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(20)


def launch_command(launcher: str, processes: int) -> list[str]:
    """What starts a script with so many processes on this machine."""
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--num_processes", str(processes)]
    return [*command, *(["--multi_gpu", "--main_process_port", str(free_port())] if processes > 1 else [])]


def ended_of(codes: Iterable[int], printed: str, out: Path, launched: bool = False) -> Ended:
    """How a start ended. launched: whether a launcher, which prints tracebacks of its own, wrote there too."""
    state = None
    with contextlib.suppress(ValueError, OSError):
        state = status(out)
    traceback = not launched and "Traceback" in printed
    lines, warnings = (tuple(dict.fromkeys(pattern.findall(printed))) for pattern in (LINE, WARNING))
    return Ended(tuple(codes), lines, warnings, traceback, state, printed[-4000:])


def children(pid: int) -> list[int]:
    """Pids of a process's children, oldest first."""
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _group(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def free_port() -> int:
    """A port that nobody listens at."""
    for port in _PORTS:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")
