"""A launcher that starts a run again after a process was lost: the run resumes, and ends as if nothing had been."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, free_port, rows, run, tiny_config, train_here, wait_for_listener
from torch import distributed

from glioma_dist.config.file import to_dict
from glioma_dist.distributed.rendezvous import agree_on_attempt

STEPS = 30
"""More than can pass between the second and the signal."""
TORCHRUN = ["torch.distributed.run", "--standalone", "--max-restarts", "2", "--nproc-per-node"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no", "--max_restarts", "2"]


def launch(arguments: list[str], out, config) -> subprocess.Popen:
    script = ["train.py", "--config", str(config), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", *arguments, *script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )


def workers(launcher: int) -> dict[int, int]:
    """Rank -> process of those that a launcher started."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        settings = Path(f"/proc/{child}/environ").read_text().split("\0")
        found |= {int(each.partition("=")[2]): int(child) for each in settings if each.startswith("RANK=")}
    return found


def kill_in_mid_run(out, launchers: list[subprocess.Popen], rank: int) -> None:
    """SIGKILL for one process of the first attempt, after two steps."""
    until = time.monotonic() + 300
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 2:
        assert time.monotonic() < until, "no step was finished"
        if any(each.poll() is not None for each in launchers):
            for each in launchers:
                each.terminate()
            pytest.fail("a launcher ended:\n" + "\n".join(each.communicate(timeout=60)[0] for each in launchers))
        time.sleep(0.02)
    found = {key: value for each in launchers for key, value in workers(each.pid).items()}
    os.kill(found[rank], signal.SIGKILL)


def train_with_one_thread(config) -> None:
    """As the launched processes do: sums depend on the number of threads."""
    torch.set_num_threads(1)
    train_here(config)


@pytest.fixture
def whole(shards, tmp_path):
    """A run that nothing stops, on as many processes, and the config that it wrote."""

    def train(num_processes: int):
        config = tiny_config(
            shards, tmp_path / "whole", batch_size=6, max_steps=STEPS, epochs=100, eval_every=None, save_every=1
        )
        (tmp_path / "whole.json").write_text(json.dumps(to_dict(config)))
        run(train_with_one_thread, config, num_processes=num_processes)
        return tmp_path / "whole"

    return train


def check(out, whole, launchers) -> None:
    outputs = [each.communicate(timeout=400)[0] for each in launchers]
    assert [each.returncode for each in launchers] == [0] * len(launchers), "\n".join(outputs)
    assert "from step 0" in "".join(outputs)
    assert len(re.findall(r"from step \d+ to 30", "".join(outputs))) > 1, "nothing was resumed"
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", STEPS)
    assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(whole)]
    name = "model.safetensors"
    assert (out / "last" / name).read_bytes() == (whole / "last" / name).read_bytes()


@pytest.mark.parametrize(
    ("launcher", "num_processes", "lost"),
    [
        pytest.param(TORCHRUN, 3, 2, marks=pytest.mark.slow),
        pytest.param(TORCHRUN, 2, 0, marks=pytest.mark.slow),
        pytest.param([*ACCELERATE, "--main_process_port", "PORT", "--num_processes"], 2, 1, marks=pytest.mark.slow),
    ],
    ids=["torchrun, the last of three", "torchrun, the first of two", "accelerate, the last of two"],
)
def test_a_restarted_run_ends_as_if_nothing_had_been(whole, tmp_path, launcher, num_processes, lost):
    reference = whole(num_processes)
    arguments = [str(free_port()) if word == "PORT" else word for word in launcher]
    with launch([*arguments, str(num_processes)], tmp_path / "out", tmp_path / "whole.json") as process:
        try:
            kill_in_mid_run(tmp_path / "out", [process], lost)
            check(tmp_path / "out", reference, [process])
        finally:
            process.terminate()


@pytest.mark.slow
def test_two_machines_of_which_one_loses_its_process(whole, tmp_path):
    """Only the machine that lost it counts a restart: the number of the attempt differs between the two."""
    reference = whole(2)
    machines = ["--num_machines", "2", "--num_processes", "2", "--rdzv_backend", "c10d"]
    port = free_port()
    machines += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port), "--machine_rank"]
    arguments = [word for word in ACCELERATE if word != "1"]
    arguments.remove("--num_machines")
    launchers = [launch([*arguments, *machines, "0"], tmp_path / "out", tmp_path / "whole.json")]
    try:
        # Here both machines have its address, and the second would take the port if it came first.
        wait_for_listener(port)
        launchers.append(launch([*arguments, *machines, "1"], tmp_path / "out", tmp_path / "whole.json"))
        kill_in_mid_run(tmp_path / "out", launchers, rank=1)
        check(tmp_path / "out", reference, launchers)
    finally:
        for each in launchers:
            with each:  # waits, and closes its pipe
                each.terminate()


@pytest.mark.parametrize("worlds", [(2, 2), (3, 2), (2, 4)])
def test_the_processes_of_an_attempt_share_a_name_that_none_before_had(worlds):
    """Also after an attempt of which only some processes came: what they left in the store misleads nobody."""
    store = distributed.HashStore()
    store.set_timeout(timedelta(seconds=20))
    store.set("attempt/asked_by/1", "a process that was lost before anybody answered")

    def come(rank: int, num_processes: int, agreed: list[str]) -> None:
        agreed.append(agree_on_attempt(store, rank, num_processes, timedelta(seconds=20)))

    names = []
    for num_processes in worlds:
        agreed: list[str] = []
        threads = [
            threading.Thread(target=come, args=(rank, num_processes, agreed)) for rank in reversed(range(num_processes))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(agreed) == num_processes
        assert len(set(agreed)) == 1
        names.append(agreed[0])
    assert len(set(names)) == len(worlds)


def test_a_first_process_that_is_alone_says_who_is_missing():
    with pytest.raises(distributed.DistStoreError, match="no answer from the ranks 1, 2"):
        agree_on_attempt(distributed.HashStore(), 0, 3, timedelta(seconds=0.1))
