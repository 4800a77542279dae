"""Where a fault takes place: folders of its own, the command that is hurt, and the run that it is compared with."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from file_calls import Moment
from forks import Ended, Forks, Run, wait_until
from helpers import free_port
from run_contents import digests

STEPS, EVAL_EVERY = 6, 3
SECONDS_A_RUN = 90
"""For a run that nothing holds up; some two seconds on an idle core."""
FLAGS = {
    "data.size": "64x64",
    "data.transform": "random-resized-crop",
    "data.augment": "flips sharpen contrast",
    "data.workers": 0,
    "model.encoder": "mit_tiny",
    "model.decoder-channels": "16 16 8 8 8",
    "batch-size": 4,
    "lr": 1e-3,
    "max-steps": STEPS,
    "eval-every": EVAL_EVERY,
}
UNUSED = ("home", "temporary", "working")
"""Folders that a run could write to, and must not: the user's, for temporary files, and that it was started in."""


def write_of_step(step: int) -> int:
    """The how manyth write to metrics.jsonl is that of a step's row: each validation writes one, too."""
    return step + (step - 1) // EVAL_EVERY


def at_step(step: int, then: Any, **how: Any) -> Moment:
    """When the row of a step is written. The signal or the error comes before the row is."""
    return Moment("write", "*/metrics.jsonl", then, write_of_step(step), **how)


def in_validation(then: Any) -> Moment:
    """While the first validation, after step 3, reads its second image."""
    # A start reads some of them, too, to see whether training has the same images.
    step = Moment("write", "*/metrics.jsonl", 0, write_of_step(EVAL_EVERY))
    return Moment("open", "*/val/*.tar", then, 2, after=step)


@dataclass
class Shared:
    """What all faults of a session share: the server of runs, drawn shards, and runs that nothing disturbed."""

    forks: Forks
    folder: Path
    data: Path
    """Holds `train` and `val`."""

    @cached_property
    def one(self) -> Path:
        """The folder of a run by one process."""
        return self._undisturbed("one", 1)

    @cached_property
    def two(self) -> Path:
        """The folder of a run by two processes."""
        return self._undisturbed("two", 2)

    @cached_property
    def other(self) -> Path:
        """The folder of another run, whose checkpoints fit the same model: of another seed."""
        return self._undisturbed("other", 1, seed=1, **{"save-every": 2})

    def _undisturbed(self, name: str, ranks: int, **flags: Any) -> Path:
        stage = Stage(self, self.folder / name)
        ended = stage.train(ranks=ranks, **flags).wait(SECONDS_A_RUN)
        assert [end.code for end in ended] == [0] * ranks, ended[0].stderr
        return stage.out


@dataclass
class Stage:
    """One fault's folders and its command."""

    shared: Shared
    folder: Path
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    made: set[str] = field(default_factory=set)
    """Names in `folder` that the fault itself made."""
    last: Launch | None = None
    out: Path = Path()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out = self.folder / "run"
        for name in UNUSED:
            (self.folder / name).mkdir(exist_ok=True)
        self._data_before = digests(self.shared.data)

    def make(self, name: str) -> Path:
        """A path in the stage's folder for what the fault needs."""
        self.made.add(name)
        return self.folder / name

    def environment(self) -> dict[str, str]:
        home, temporary, _ = (str(self.folder / name) for name in UNUSED)
        return {"HOME": home, "TMPDIR": temporary, "XDG_CACHE_HOME": home, "HF_HOME": home}

    def train(
        self,
        moments: list[Moment] | None = None,
        ranks: int = 1,
        data: Any = None,
        job: dict | None = None,
        **flags: Any,
    ) -> Launch:
        """Start the training. data: a folder or URL that holds train and val. flags: replace or add to FLAGS.

        The moments are those of the first process.
        """
        data = data or self.shared.data
        named = {"data.train": f"{data}/train", "data.val": f"{data}/val", **FLAGS, **flags, "out": self.out}
        arguments = [part for name, value in named.items() for part in (f"--{name}", *str(value).split(" "))]
        return self.launch("train.py", arguments, moments, ranks, **(job or {}))

    def launch(
        self, script: str, arguments: list[Any], moments: list[Moment] | None = None, ranks: int = 1, **job: Any
    ) -> Launch:
        self.last = Launch(self, script, [str(argument) for argument in arguments], ranks)
        self.last.start(moments, **job)
        return self.last

    def resume(self) -> list[Ended]:
        """The same command, with nothing in its way."""
        assert self.last is not None
        self.last.start(None)
        return self.last.wait(SECONDS_A_RUN)

    def data_is_untouched(self) -> bool:
        return digests(self.shared.data) == self._data_before

    def strangers(self) -> list[str]:
        """What lies beside --out, and in the folders that nothing is to be written to.

        A process that is killed while Python looks for a folder for temporary files leaves the file it tried it with.
        """
        known = {"run", *UNUSED, *self.made}
        found = [path.name for path in self.folder.iterdir() if path.name not in known]
        return found + [
            str(path.relative_to(self.folder))
            for name in UNUSED
            for path in (self.folder / name).rglob("*")
            if not re.match(r"temporary/[a-z0-9_]{8}$", str(path.relative_to(self.folder)))
        ]


class Launch:
    """The processes of one command."""

    def __init__(self, stage: Stage, script: str, arguments: list[str], ranks: int) -> None:
        self.stage, self.script, self.arguments, self.ranks = stage, script, arguments, ranks
        self.runs: list[Run] = []
        self.moments: list[Moment] = []

    def start(self, moments: list[Moment] | None, **job: Any) -> None:
        self.moments = moments or []
        port = free_port()
        self.runs, added = [], job.pop("environment", {})
        for rank in range(self.ranks):
            environment = {**self.stage.environment(), **added}
            if self.ranks > 1:
                environment |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(self.ranks),
                    "LOCAL_WORLD_SIZE": str(self.ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            self.runs.append(
                self.stage.shared.forks.start(
                    self.script,
                    self.arguments,
                    environment,
                    moments if rank == 0 else None,
                    self.stage.out if rank == 0 and moments is not None else None,
                    folder=str(self.stage.folder / "working"),
                    **job,
                )
            )

    @property
    def first(self) -> Run:
        return self.runs[0]

    def wait_for_any(self, seconds: float) -> None:
        """Until one of the processes has ended."""
        wait_until(lambda: any(run.ended.is_set() for run in self.runs), seconds, "no process ended")

    def wait(self, seconds: float) -> list[Ended]:
        """How each process ended, in the order of their ranks. Those that hang are killed."""
        try:
            ended = [run.wait(seconds) for run in self.runs]
        finally:
            for run in self.runs:
                run.kill_session()
        missed = [moment for moment in self.moments if not moment.happened.is_set()]
        assert not missed, f"the fault never came: {missed}; {ended[0].stderr[-2000:]}"
        return ended
