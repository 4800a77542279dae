"""Two machines (machines.py) under the real launchers: whole runs, lost machines, separate disks, machines that come
and go. Each test starts four interpreters or more, so all are slow."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import REPOSITORY, rows, run, tiny_config, train_here
from machines import PORT, A, B, Network
from test_machines import MULTI_NODE, check_equal, wait_for_rows

from glioma_dist.config.file import to_dict
from glioma_dist.data.mixture import open_training_data

pytestmark = pytest.mark.slow

STEPS = 16
SECONDS_A_STEP = 0.5
TIMEOUT = 15
SECONDS = 400
"""For launches to end, on a machine that is busy."""
SLOW_TRAIN = f"""
import os, runpy, sys, time
from glioma_dist.training import loop
step = loop.train_step
def slowly(trainer, batch, number):
    with open(os.environ["PACE"]) as file:
        time.sleep(float(file.read()))
    with open(os.environ["KEYS"], "a") as file:
        print(number, trainer.context.num_processes, *batch.keys, file=file, flush=True)
    return step(trainer, batch, number)
loop.train_step = slowly
sys.argv[0] = {str(REPOSITORY / "train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ACCELERATE = ["accelerate.commands.launch", "--config_file", str(MULTI_NODE), "--mixed_precision", "no"]
ACCELERATE += ["--num_processes", "2", "--main_process_ip", A, "--main_process_port", str(PORT), "--machine_rank"]
TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "run"]
TORCHRUN += ["--rdzv-endpoint", f"{A}:{PORT}"]
LAUNCHERS = {
    "accelerate": lambda name: [*ACCELERATE, str((A, B).index(name))],
    "torchrun": lambda name: [*TORCHRUN, "--nnodes", "2"],
    "torchrun 1:2": lambda name: [
        *TORCHRUN,
        "--nnodes",
        "1:2",
        "--max-restarts",
        "3",
        "--rdzv-conf",
        "last_call_timeout=2",
    ],
}

FOR_NEWCOMERS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it, a launcher that joins waits for an address that the first one, which has a store already, does not write
again (torch 2.15, RendezvousStoreInfo.build)."""


class Launches:
    """The same command on each machine."""

    def __init__(self, network: Network, folder: Path, launcher: str, config) -> None:
        self.network, self.folder, self.launcher, self.config = network, folder, launcher, config
        self.outs = dict.fromkeys((A, B), config.out)
        self.started: dict[str, subprocess.Popen] = {}
        (folder / "slow_train.py").write_text(SLOW_TRAIN)
        (folder / "config.json").write_text(json.dumps(to_dict(config)))

    def start(self, *names: str, seconds_a_step: float = SECONDS_A_STEP) -> None:
        script = [str(self.folder / "slow_train.py"), "--config", str(self.folder / "config.json"), "--out"]
        self.pace(seconds_a_step)
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PACE": str(self.folder / "pace")}
        variables |= FOR_NEWCOMERS if self.launcher == "torchrun 1:2" else {}
        for name in names or (A, B):
            self.started[name] = self.network.start(
                name,
                [sys.executable, "-m", *LAUNCHERS[self.launcher](name), *script, str(self.outs[name])],
                self.folder / f"{name}.txt",
                cwd=REPOSITORY,
                env=os.environ | variables | {"KEYS": str(self.folder / f"{name}.keys")},
            )

    def pace(self, seconds_a_step: float) -> None:
        """How long each step takes besides its computation, also of what is running."""
        (self.folder / "pace.new").write_text(str(seconds_a_step))
        (self.folder / "pace.new").rename(self.folder / "pace")

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.txt").read_text()

    def errors(self, name: str) -> list[str]:
        """Its `error:` lines, each once: a launcher's report repeats them."""
        return list(dict.fromkeys(re.findall(r"error: [^\n]*", self.said(name))))

    def kill(self, name: str) -> None:
        """SIGKILL to all processes of a machine."""
        self.started[name].kill()
        self.started[name].wait()

    def wait(self, *names: str) -> list[int]:
        return [self.started[name].wait(SECONDS) for name in names or (A, B)]

    def steps(self) -> list[tuple[int, int, list[str]]]:
        """Each step that a process took: its number from 0, the number of processes, and the keys of its images."""
        paths = [path for name in (A, B) if (path := self.folder / f"{name}.keys").exists()]
        lines = [line.split() for path in paths for line in path.read_text().splitlines()]
        return [(int(number), int(num_processes), keys) for number, num_processes, *keys in lines]

    def end(self) -> None:
        for process in self.started.values():
            process.kill()
            process.wait()


@pytest.fixture
def launches(network, shards, tmp_path):
    made = []

    def make(launcher: str, timeout_s: float = TIMEOUT) -> Launches:
        config = tiny_config(shards, tmp_path / "run", max_steps=STEPS, epochs=100, val=None, save_every=1)
        config = replace(config, scale=replace(config.scale, timeout_s=timeout_s))
        made.append(Launches(network, tmp_path, launcher, config))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Path:
    """The same run on two processes of one machine."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(train_here, tiny_config(shards, out, max_steps=STEPS, epochs=100, val=None, save_every=1), num_processes=2)
    return out


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_a_whole_run_equals_one_on_one_machine(launches, whole, launcher):
    both = launches(launcher)
    both.start(seconds_a_step=0)
    assert both.wait() == [0, 0], both.said(A) + both.said(B)
    check_equal(both.outs[A], whole)
    record = json.loads((both.outs[A] / "run.json").read_text())["starts"][-1]
    assert [each["host"] for each in record["processes"]] == [A, B]


@pytest.mark.parametrize("lost", [A, B])
@pytest.mark.parametrize("is_silent", [False, True], ids=["killed", "switched off"])
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_a_machine_is_lost_and_the_same_commands_resume(launches, whole, network, launcher, is_silent, lost):
    both, left = launches(launcher), B if lost == A else A
    both.start()
    wait_for_rows(both.outs[A], 3)
    if is_silent:
        network.unplug(lost)
    both.kill(lost)
    began = time.monotonic()
    assert both.wait(left) != [0]
    seconds = time.monotonic() - began
    print(
        f"{launcher}, {lost} {'switched off' if is_silent else 'killed'}: {left} ends after {seconds:.0f} s\n"
        f"{both.errors(left)}"
    )
    assert any(lost in line for line in both.errors(left)), both.said(left)
    if is_silent:
        network.plug(lost)
    both.start(seconds_a_step=0)
    assert both.wait() == [0, 0], both.said(A) + both.said(B)
    check_equal(both.outs[A], whole)


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
@pytest.mark.parametrize("how", ["silently", "own link down"])
@pytest.mark.parametrize("seconds", [4, 30])
def test_a_cut_is_survived(launches, whole, network, launcher, how, seconds):
    """30 s is twice as long as torchrun's launchers take to count one another as lost."""
    both = launches(launcher, timeout_s=max(TIMEOUT, 3 * seconds))
    both.start()
    wait_for_rows(both.outs[A], 3)
    network.unplug(B) if how == "silently" else network.set_link(B, "down")
    time.sleep(seconds)
    network.plug(B) if how == "silently" else network.set_link(B, "up")
    assert both.wait() == [0, 0], both.said(A) + both.said(B)
    check_equal(both.outs[A], whole)


def test_a_machine_that_joins_and_leaves_changes_no_sample(launches):
    """torchrun --nnodes 1:2: alone, then two, then alone again; every step's batch is that of an undisturbed run."""
    both = launches("torchrun 1:2")
    both.start(A)
    wait_for_rows(both.outs[A], 3)
    both.start(B, seconds_a_step=8)  # the other launcher takes its time to start
    until = time.monotonic() + SECONDS
    while not any(num_processes == 2 for _, num_processes, _ in both.steps()):
        assert time.monotonic() < until, both.said(A) + both.said(B)
        assert both.started[A].poll() is None, both.said(A) + both.said(B)
        time.sleep(0.1)
    both.pace(1)
    time.sleep(2)
    both.kill(B)
    both.pace(0)
    assert both.wait(A) == [0], both.said(A) + both.said(B)
    assert [row["step"] for row in rows(both.outs[A])] == list(range(1, STEPS + 1))
    print(re.findall(r"on \d process\S* .*from step \d+", both.said(A)), both.errors(A))
    config = both.config
    train, sampler = open_training_data(config.data, config.batch_size, config.seed)
    for number, num_processes, keys in both.steps():
        batch = [train.read(place.shard, place.sample).key for place in sampler.batch(number)]
        parts = [batch] if num_processes == 1 else [batch[:2], batch[2:]]
        assert keys in parts
    assert {num_processes for _, num_processes, _ in both.steps()} == {1, 2}
