"""Ways to hurt a training, used by the tables of faults."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import small_disk
from faulty_server import FaultyServer, files_of, serve
from file_calls import Moment
from forks import Ended
from stage import Stage

SECONDS_TO_END = 150
"""After which a run that hangs is killed, and the test fails."""
Inflict = Callable[[Stage], Sequence[Ended]]


def hurt(*moments: Callable[[], Moment], **flags: Any) -> Inflict:
    """A training to which something happens at each of the moments. Flags are written with _ for - and __ for a dot."""

    def inflict(stage: Stage) -> Sequence[Ended]:
        return stage.train([moment() for moment in moments], **_named(flags)).wait(SECONDS_TO_END)

    return inflict


def hurt_ranks(moment: Callable[[Stage], Moment], after: Callable[[Stage], None] | None = None) -> Inflict:
    """A training by two processes; the moment is one of the first's. Once a process has ended, `after` is called."""

    def inflict(stage: Stage) -> Sequence[Ended]:
        launch = stage.train([moment(stage)], ranks=2, **{"scale.timeout-s": 8})
        if after is not None:
            launch.wait_for_any(SECONDS_TO_END)
            after(stage)
        return launch.wait(SECONDS_TO_END)

    return inflict


def hurt_from_url(
    faults: Callable[[str, int], str | None],
    prepare: Callable[[FaultyServer], None] = lambda server: None,
    **flags: Any,
) -> Inflict:
    """A training from a web server that answers badly until the run has ended, and well from then on."""

    def inflict(stage: Stage) -> Sequence[Ended]:
        server = start_server(stage)
        server.faults = faults
        prepare(server)
        ended = stage.train(data=server.url, **_named(flags)).wait(SECONDS_TO_END)
        server.faults = lambda path, number: None
        return ended

    return inflict


def start_server(stage: Stage) -> FaultyServer:
    """A web server of the drawn shards, for as long as the stage stands."""
    return stage.closing.enter_context(serve(files_of(stage.shared.data)))


def mount_small(stage: Stage, folder: Path, num_bytes: int) -> None:
    """A small file system of its own in a folder, for as long as the stage stands. Needs root."""
    small_disk.mount_small(folder, num_bytes)
    stage.closing.callback(small_disk.unmount, folder)


def signal_rank(stage: Stage, rank: int, number: int) -> None:
    """Signal one of the launch's processes."""
    assert stage.last is not None
    os.kill(stage.last.runs[rank].pid, number)


def _named(flags: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", ".").replace("_", "-"): value for name, value in flags.items()}
