"""A request to stop, in every phase of a run, on any of its processes: all of them agree, save and end alike."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from helpers import REPOSITORY, change_loss, free_port, rows, run, tiny_config

from glioma_dist.config.file import to_dict
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import ExitCode, RunError
from glioma_dist.training import loop, preparation, run_folder, validation
from glioma_dist.training.run_folder import RunFolder
from glioma_dist.training.snapshot import SnapshotMemory

SECONDS_TO_END = 20.0
"""The promise, without a step and the write of a checkpoint, which take no time here."""
LOSS = "loss"
"""Of training steps, with `loop`, or of validations."""
PHASES: dict[str, tuple[Any, str, int, int]] = {
    # Where, which function, at which call, and the step of the checkpoint that is left. A start reads two samples, and
    # those that the first process looks at, for statistics and warnings, which are left out here.
    "joining groups": (loop, "join_spatial_group", 1, 0),
    "reading the run's folder": (run_folder, "look", 1, 0),
    "reading the data": (preparation, "open_training_data", 1, 0),
    "building the network": (preparation, "build_model", 1, 0),
    "placing it on the device": (preparation, "make_optimizer", 1, 0),
    "claiming the folder": (RunFolder, "claim", 1, 0),
    "loading the first batch": (ShardReader, "read", 3, 0),
    "loading a batch": (ShardReader, "read", 7, 2),
    "a step": (loop, LOSS, 2, 2),
    "validation": (validation, LOSS, 1, 3),
    "copying a checkpoint": (SnapshotMemory, "take", 1, 2),
}
RANKS = ((0,), (1,), (0, 1))


def _with(acting: Callable, function: Callable) -> Callable:
    """As a plain function, which is a method where it is put into a class."""
    return lambda *given, **named: acting(function, *given, **named)


def stop_in(phase: str, act: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Have `act` called in a phase of the next training of this process."""
    owner, name, number, _ = PHASES[phase]
    calls = []

    def acting(function, *given, **named):
        calls.append(1)
        if len(calls) == number:
            act()
        return function(*given, **named)

    if name == LOSS:
        change_loss(patch, owner is loop, acting)
    else:
        patch.setattr(owner, name, _with(acting, getattr(owner, name)))


def stop_everywhere(shards: Path, folder: Path) -> list[tuple]:
    """Train again and again in this process of a launch, and stop each training elsewhere. Returns how each ended."""
    from glioma_dist.distributed.context import WORD_OF_AN_END, DistributedContext

    here, found = DistributedContext.start(), []
    store = dist.distributed_c10d._get_default_store()
    for phase in PHASES:
        for ranks in RANKS:
            config = tiny_config(shards, folder / f"{phase} {ranks}", save_every=2)
            asked = time.monotonic()

            def ask(ranks: tuple = ranks) -> None:
                nonlocal asked
                asked = time.monotonic()
                if here.rank in ranks:
                    signal.raise_signal(signal.SIGTERM)

            here.wait()
            store.delete_key(WORD_OF_AN_END)
            here.wait()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(preparation, "training_statistics", lambda *given: None)
                patch.setattr(preparation, "warnings_on_data", lambda *given: [])
                stop_in(phase, ask, patch)
                try:
                    loop.train(config, here)
                    ending = None
                except RunError as error:
                    ending = (int(error.exit_code), str(error))
            found.append((phase, ranks, ending, time.monotonic() - asked))
            print(found[-1], file=sys.stderr, flush=True)
    return found


def test_wherever_a_process_is_asked_to_stop_all_save_and_end(shards, tmp_path):
    for rank, found in enumerate(run(stop_everywhere, shards, tmp_path, num_processes=2, timeout=400)):
        assert len(found) == len(PHASES) * len(RANKS)
        for phase, ranks, ending, seconds in found:
            case = f"{phase}, asked {ranks}, rank {rank}: {ending}"
            print(f"{case}, {seconds:.2f} s")
            step = PHASES[phase][3]
            assert ending is not None, case
            assert ending[0] == ExitCode.STOPPED, case
            assert "received SIGTERM" in ending[1], case
            state = tmp_path / f"{phase} {ranks}" / "last" / "state.json"
            saved = json.loads(state.read_text())["position"]["step"] if state.exists() else 0
            assert saved == step, case
            assert (f"checkpoint saved at step {step}" in ending[1]) == (step > 0), case
            assert seconds < SECONDS_TO_END, case


def with_own_clock(config, clock: Path) -> None:
    """Train where only the first process finds that minutes have passed, after its second step."""
    from types import SimpleNamespace

    from helpers import train_here

    from glioma_dist.training import saving

    step, now = loop.train_step, 0.0 if os.environ["RANK"] == "0" else 1e9

    def passing(*given):
        nonlocal now
        now += 40
        return step(*given)

    saving.time = SimpleNamespace(monotonic=lambda: now)
    agree = saving.CheckpointSaver.agree
    # None is due while one is written, however slow the disk is.
    saving.CheckpointSaver.agree = lambda saver, *given: saver.wait() or agree(saver, *given)
    loop.train_step = passing
    complete = RunFolder.checkpoint_complete

    def tell(folder, name, step) -> None:
        with clock.open("a") as file:
            file.write(f"{os.environ['RANK']} {name} {step}\n")
        complete(folder, name, step)

    RunFolder.checkpoint_complete = tell
    train_here(config)


def test_the_first_process_s_clock_decides_when_all_save(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", val=None, eval_every=6, save_every_minutes=1.0)
    run(with_own_clock, config, tmp_path / "told", num_processes=2)
    assert (tmp_path / "told").read_text() == "0 last 2\n0 last 4\n0 last 6\n"


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank -> process, of those that a launcher has started and that run Python already."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(each.partition("=")[::2] for each in (folder / "environ").read_text().split("\0"))
            if parent == launcher and "RANK" in variables and "train.py" in (folder / "cmdline").read_text():
                found[int(variables["RANK"])] = int(folder.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["imports", "a step"])
@pytest.mark.parametrize("asked", ["launcher", 0, 1])
def test_with_a_real_launcher_all_processes_end_in_time(shards, tmp_path, phase, asked):
    """torchrun hands SIGTERM on, and ends the others where one has ended; after 30 s it would kill them."""
    config = tiny_config(shards, tmp_path / "run", epochs=10**6, max_steps=None, eval_every=10**6, val=None)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(
        [*launch, "train.py", "--config", str(tmp_path / "config.json")],
        cwd=REPOSITORY,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        wait_until(lambda: len(ranks_of(launcher.pid)) == 2)
        ranks = ranks_of(launcher.pid)
        if phase == "imports":
            # Python's own handlers are there once PyTorch is being imported.
            wait_until(lambda: all("libtorch" in Path(f"/proc/{each}/maps").read_text() for each in ranks.values()))
        else:
            wait_until(lambda: (config.out / "metrics.jsonl").exists() and len(rows(config.out)) > 1)
        began = time.monotonic()
        os.kill(launcher.pid if asked == "launcher" else ranks[asked], signal.SIGTERM)
        told = launcher.communicate()[1]
        seconds = time.monotonic() - began
    print(f"{phase}, asked {asked}: {seconds:.1f} s, {told[-300:]}")
    assert not any(Path(f"/proc/{each}").exists() for each in ranks.values())
    assert "received SIGTERM" in told
    assert "SIGKILL" not in told
    if phase == "a step":
        status = json.loads((config.out / "status.json").read_text())
        assert (status["state"], status["code"]) == ("stopped", ExitCode.STOPPED)
        assert status["checkpoint_step"] == status["step"] == rows(config.out)[-1]["step"]
    assert seconds < 60, "30 s, and a machine that is busy"


def wait_until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
