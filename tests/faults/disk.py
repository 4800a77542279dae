"""Faults: disks that are full, read-only or gone, and folders that somebody removes."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from signal import SIGTERM

from contract import USER_ERROR, Fault
from file_calls import FileCall, Moment
from forks import Ended
from inflict import SECONDS_TO_END, mount_small
from small_disk import fill
from stage import SECONDS_A_RUN, Stage, at_step

SMALL_DISK = 2**23
"""Bytes: room for three checkpoints."""
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "quota"}


def full_disk(when: Callable[[Callable[[FileCall], None]], Moment]) -> Callable[[Stage], Sequence[Ended]]:
    """A training on a small disk, which somebody fills at the moment."""

    def inflict(stage: Stage) -> Sequence[Ended]:
        disk = stage.make("disk")
        mount_small(stage, disk, SMALL_DISK)
        stage.out = disk / "run"
        return stage.train([when(lambda call: fill(disk) and None)], **{"save-every": 2}).wait(SECONDS_TO_END)

    return inflict


def free_disk(stage: Stage) -> None:
    (stage.folder / "disk" / "ballast").unlink()


def read_only_disk(stage: Stage) -> Sequence[Ended]:
    disk = stage.make("disk")
    mount_small(stage, disk, SMALL_DISK)
    remount(stage, "ro")
    stage.out = disk / "run"
    return stage.train().wait(SECONDS_TO_END)


def remount(stage: Stage, how: str) -> None:
    import subprocess

    subprocess.run(["mount", "-o", f"remount,{how}", str(stage.folder / "disk")], check=True)


def fails(code: int, kind: str, path: str, number: int = 1, **flags: object) -> Callable[[Stage], Sequence[Ended]]:
    """A training whose `number`-th call of a kind on a path fails, and all that write there from then on."""
    failing = False

    def act(call: FileCall) -> int:
        nonlocal failing
        failing = True
        return code

    def moments() -> list[Moment]:
        nonlocal failing
        failing = False
        return [
            Moment("makes", "*/run*", lambda call: code if failing else 0, again=True),
            Moment(kind, path, act, number),
        ]

    def inflict(stage: Stage) -> Sequence[Ended]:
        later, now = moments()
        return stage.train([Both(now, later)], **flags).wait(SECONDS_TO_END)

    return inflict


class Both(Moment):
    """One moment, after which another happens again and again."""

    def __init__(self, start: Moment, then: Moment) -> None:
        super().__init__(start.kind, start.path, 0)
        self.start, self.later = start, then

    def meets(self, call: FileCall) -> bool:
        return self.start.meets(call) or (self.start.happened.is_set() and self.later.meets(call))

    def act(self, call: FileCall) -> int:
        self.happened.set()
        return self.later.act(call) if self.start.happened.is_set() else self.start.act(call)


def removed_in_mid_run(stage: Stage) -> Sequence[Ended]:
    return stage.train([at_step(4, lambda call: shutil.rmtree(stage.out))]).wait(SECONDS_TO_END)


def not_made_again(stage: Stage) -> None:
    assert not stage.out.exists(), f"half a run was made again: {sorted(stage.out.rglob('*'))}"


def removed_checkpoints(stage: Stage) -> Sequence[Ended]:
    """last/ and the ones before it are gone, while best/ and the metrics are there."""
    stage.train([at_step(5, SIGTERM)]).wait(SECONDS_A_RUN)
    aside = stage.make("aside")
    aside.mkdir()
    for path in stage.out.glob("last*"):
        path.rename(aside / path.name)
    return stage.train().wait(SECONDS_TO_END)


def put_back(stage: Stage) -> None:
    for path in (stage.folder / "aside").iterdir():
        path.rename(stage.out / path.name)


def nothing_changed(stage: Stage) -> None:
    assert (stage.out / "best").is_dir()
    assert not list(stage.out.glob("last*"))


def small_shared_memory(stage: Stage) -> Sequence[Ended]:
    """As in containers. Workers share memory with the run that lies elsewhere."""
    return stage.train(job={"shared_memory_bytes": 2**16}, **{"data.workers": 2}).wait(SECONDS_TO_END)


def long_temporary_folder(stage: Stage) -> Sequence[Ended]:
    """Sockets below TMPDIR cannot have names of more than 107 bytes."""
    folder = stage.make("long") / ("a" * 120)
    folder.mkdir(parents=True)
    job = {"environment": {"TMPDIR": str(folder)}}
    return stage.train(job=job, **{"data.workers": 2}).wait(SECONDS_TO_END)


def _full_disks() -> list[Fault]:
    sites = {
        "the run's folder": ("mkdir", "*/run", 1),
        "its first file": ("makes", "*/run/*", 1),
        "metrics.jsonl": ("rename", "*/run/metrics.jsonl", 1),
        "the row of a step": ("write", "*/run/metrics.jsonl", 5),
        "a checkpoint's folder": ("mkdir", "*/run/last.new", 2),
        "a checkpoint's files": ("makes", "*/run/last.new/*", 5),
        "a checkpoint's name": ("rename", "*/run/last", 2),
        "best": ("rename", "*/run/best", 1),
        "status.json": ("rename", "*/run/status.json", 2),
    }
    faults = []
    for name, (kind, path, number) in sites.items():
        for code, word in FULL.items():
            faults.append(
                Fault(
                    f"{errno.errorcode[code]} at {name}",
                    "Disk",
                    fails(code, kind, path, number, **{"save-every": 2}),
                    (USER_ERROR,),
                    word,
                    saved=False,
                    telling=False,
                )
            )
    return faults


def _disks() -> list[Fault]:
    mounted = {"codes": (USER_ERROR,), "saved": False, "telling": False, "needs_root": True}
    row = partial(at_step, 5)
    return [
        Fault("small disk full at a step", "Disk", full_disk(row), says="disk is full", repair=free_disk, **mounted),
        Fault(
            "small disk full in a checkpoint",
            "Disk",
            full_disk(lambda then: Moment("open", "*/run/last.new/*", then, 4)),
            says="disk is full",
            repair=free_disk,
            **mounted,
        ),
        Fault(
            "read-only disk",
            "Disk",
            read_only_disk,
            says="[Rr]ead-only",
            repair=partial(remount, how="rw"),
            **mounted,
        ),
        Fault(
            "disk that turns read-only",
            "Disk",
            fails(errno.EROFS, "write", "*/run/metrics.jsonl", 5),
            (USER_ERROR,),
            "[Rr]ead-only",
            saved=False,
            telling=False,
        ),
        Fault(
            "folder that this user may not write to",
            "Disk",
            fails(errno.EACCES, "mkdir", "*/run"),
            (USER_ERROR,),
            "cannot be (written|made)",
            saved=False,
            telling=False,
        ),
        Fault(
            "run folder removed in mid-run",
            "Disk",
            removed_in_mid_run,
            (USER_ERROR,),
            "gone|removed",
            saved=False,
            telling=False,
            check=not_made_again,
        ),
        Fault(
            "last/ removed, best/ there",
            "Disk",
            removed_checkpoints,
            (USER_ERROR,),
            "last",
            saved=False,
            telling=False,
            check=nothing_changed,
            repair=put_back,
        ),
        Fault("small /dev/shm", "Disk", small_shared_memory, needs_root=True),
        Fault("TMPDIR with a long name", "Disk", long_temporary_folder),
    ]


FAULTS = [*_full_disks(), *_disks()]
