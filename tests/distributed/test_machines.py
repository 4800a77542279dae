"""Two machines with addresses and host names of their own (machines.py), whose link fails, or of which one is lost."""

import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import REPOSITORY, free_port, rows, run, start, tiny_config, train_here, wait_for_listener
from machines import PORT, A, B, Network
from test_processes import FIRST_STEP_FP32, check_close

from glioma_dist.distributed.network import INTERFACE, choose_interface, find_interface
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import ExitCode
from glioma_dist.training import loop

STEPS = 12
SECONDS_A_STEP = 0.3
"""So that no run ends before its link is cut."""
BOUND = 120
"""For a process to end: the timeout of the run, 10 s of grace, 5 s for the first to speak, and a busy machine."""
MULTI_NODE = REPOSITORY / "accelerate_configs" / "multi_node.yaml"


def test_two_launchers_train_one_model(shards, quick_python, tmp_path, runtime):
    config = tiny_config(shards, tmp_path / "one", max_steps=2, eval_every=None)
    loop.train(config, runtime)
    launch = [str(quick_python), "-m", "accelerate.commands.launch"]
    port = free_port()
    machine = ["--mixed_precision", "no", "--num_processes", "2"]
    machine += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    script = ["train.py", "--config", str(tmp_path / "one" / "config.json"), "--out", str(tmp_path / "two")]
    launchers = []
    try:
        for number in ("0", "1"):
            launchers.append(
                subprocess.Popen(
                    [*launch, "--config_file", str(MULTI_NODE), *machine, "--machine_rank", number, *script],
                    cwd=REPOSITORY,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env={**os.environ, "ACCELERATE_USE_CPU": "true"},
                )
            )
            # Here both machines have the first one's address, and the second would take the port if it came first.
            wait_for_listener(port)
        outputs = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(outputs)
    assert "10 images, batch 4 on 2 processes (cpu)" in outputs[0] + outputs[1]
    check_close(rows(tmp_path / "two")[:1], rows(tmp_path / "one")[:1], FIRST_STEP_FP32)


def config_of(shards, out: Path, timeout_s: float):
    config = tiny_config(shards, out, max_steps=STEPS, epochs=100, val=None, save_every=1)
    return replace(config, scale=replace(config.scale, timeout_s=timeout_s))


def train_on(network: Network, config, seconds_a_step: float = 0.0) -> None:
    """Be the one process of a machine. Slowly: a step also takes `seconds_a_step`."""
    rank = int(os.environ["RANK"])
    network.enter(network.names[rank])
    os.environ |= {
        "MASTER_ADDR": network.address(A),
        "MASTER_PORT": str(PORT),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
    }
    step = loop.train_step

    def slowly(*given):
        time.sleep(seconds_a_step)
        return step(*given)

    loop.train_step = slowly
    run_command(lambda: train_here(config))


def wait_for_rows(out: Path, count: int) -> None:
    until = time.monotonic() + BOUND
    while not (out / "metrics.jsonl").exists() or len(rows(out)) < count:
        assert time.monotonic() < until, f"step {count} was never finished"
        time.sleep(0.05)


def check_equal(out: Path, whole: Path) -> None:
    """Every row of a run, and its weights, are those of another."""
    assert rows(out) == rows(whole)
    model = Path("last", "model.safetensors")
    assert (out / model).read_bytes() == (whole / model).read_bytes()


def test_a_short_cut_is_survived_and_a_long_one_ends_both_naming_the_other_machine(network, shards, tmp_path):
    """Silently: no side is told that packets are lost. Then the same command resumes, to the same bits."""
    config = config_of(shards, tmp_path / "run", timeout_s=10)
    started = start(train_on, network, config, SECONDS_A_STEP, num_processes=2)
    wait_for_rows(config.out, 2)
    network.unplug(B)
    time.sleep(1.5)
    before = len(rows(config.out))
    assert before < STEPS - 4
    network.plug(B)
    wait_for_rows(config.out, before + 2)
    network.unplug(B)
    cut = time.monotonic()
    first, second = started.wait()
    assert time.monotonic() - cut < BOUND
    assert [first.exit_code, second.exit_code] == [ExitCode.UNAVAILABLE] * 2, first.stderr + second.stderr
    assert re.search(rf"^error: {B} \(rank 1\) did not answer for 10 s \(last seen ", first.stderr, re.M), first.stderr
    assert f"error: {A} (rank 0, the launch's store) did not answer for 10 s; " in second.stderr
    assert json.loads((config.out / "status.json").read_text())["code"] == ExitCode.UNAVAILABLE
    network.plug(B)
    run(train_on, network, config, num_processes=2)
    run(train_here, replace(config, out=tmp_path / "whole"), num_processes=2)
    check_equal(config.out, tmp_path / "whole")


def choose_on(network: Network, name: str, environment: dict[str, str]) -> dict[str, str]:
    network.enter(name)
    choose_interface(environment)
    return environment


@pytest.mark.parametrize(
    "changes",
    [
        {"LOCAL_WORLD_SIZE": "2"},
        {"WORLD_SIZE": "1"},
        {INTERFACE: "eth7"},
        {"MASTER_ADDR": ""},
        {"MASTER_ADDR": "no.such"},
    ],
    ids=["one machine", "one process", "chosen by the user", "no address", "unknown address"],
)
def test_no_interface_is_chosen_where_none_is_asked_for(network, changes):
    given = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": network.address(A), **changes}
    assert run(choose_on, network, B, given) == [given]


def interface_on(network: Network, name: str, host: str) -> str | None:
    network.enter(name)
    return find_interface(host)


def test_the_interface_that_leads_to_the_other_machines_is_found(network):
    """Not that of the machine's own name, which is 127.0.1.1 on many systems."""
    for name in (A, B):
        for host in (network.address(A), network.address(B)):
            assert run(interface_on, network, name, host) == ["eth0"]
    several = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": network.address(A)}
    assert run(choose_on, network, B, several) == [{**several, INTERFACE: "eth0"}]
    assert run(interface_on, network, A, "127.0.1.1") == [None], "there is no way elsewhere"
    network.add_router(A)
    assert run(interface_on, network, A, "127.0.1.1") == ["eth0"]
