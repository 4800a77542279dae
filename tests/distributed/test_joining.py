"""Processes of a launch that do not find each other: one line, an exit code, and a bound on the time."""

import json
import os
import signal
import socket
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch.distributed as dist
from helpers import free_port, run, start, tiny_config, train_here

from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.joining import SECONDS_OF_GRACE, check_place
from glioma_dist.distributed.run_command import SECONDS_FOR_FIRST_PROCESS_TO_SPEAK, run_command
from glioma_dist.errors import ExitCode, InputError

TIMEOUT = 2
BOUND = TIMEOUT + SECONDS_OF_GRACE + SECONDS_FOR_FIRST_PROCESS_TO_SPEAK + 30
"""The last for a machine that is busy."""
PLACE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def join() -> None:
    run_command(lambda: DistributedContext.start(TIMEOUT))


def start_alone(rank: int, port: int):
    place = {**PLACE, "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    return start(join, environment=place, timeout=BOUND)


def port_of(sock: socket.socket) -> int:
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]


def lines_of(stderr: str) -> list[str]:
    """Without what PyTorch's C++ says."""
    return [line for line in stderr.splitlines() if line.startswith(("error: ", "stopped: ", "Traceback"))]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_peer_never_comes_ends_in_one_line(rank):
    port = free_port()
    (ended,) = start_alone(rank, port).wait()
    assert ended.exit_code == ExitCode.UNAVAILABLE, ended.stderr
    (line,) = lines_of(ended.stderr)
    assert f"the 2 processes of this launch did not find each other at 127.0.0.1:{port} within 2 s" in line


def test_a_first_process_that_never_answers_does_not_hold_the_others():
    """As one that was stopped; PyTorch's store would wait without end."""
    with closing(socket.socket()) as silent:
        port = port_of(silent)
        silent.listen()
        (ended,) = start_alone(1, port).wait()
    assert ended.exit_code == ExitCode.UNAVAILABLE, ended.stderr
    assert len(lines_of(ended.stderr)) == 1


def join_slowly() -> tuple[float, float]:
    """When this process had connected its group, the second process 1 s late; and when `start` returned."""
    connect, connected = dist.new_group, []

    def connect_slowly(*arguments, **options):
        group = connect(*arguments, **options)
        time.sleep(int(os.environ["RANK"]))
        connected.append(time.monotonic())
        return group

    dist.new_group = connect_slowly
    DistributedContext.start()
    return connected[0], time.monotonic()


def test_no_process_goes_on_while_another_still_connects():
    """It could end with an error of its own, which the other would take for a lost connection."""
    (_, first_started), (second_connected, _) = run(join_slowly, num_processes=2)
    assert first_started >= second_connected


def test_a_port_that_another_program_has_is_the_users_to_change():
    with closing(socket.socket()) as taken:
        port = port_of(taken)
        taken.listen()
        (ended,) = start_alone(0, port).wait()
    assert ended.exit_code == ExitCode.USER_ERROR, ended.stderr
    (line,) = lines_of(ended.stderr)
    assert line.startswith(f"error: 127.0.0.1:{port}: another program uses this port")


def test_a_request_to_stop_ends_a_process_that_waits_for_others():
    """It waits in C++, where no handler of Python's runs."""
    with closing(socket.socket()) as silent:
        port = port_of(silent)
        silent.listen()
        silent.settimeout(BOUND)
        place = {**PLACE, "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": str(port)}
        started = start(join_patiently, environment=place, timeout=BOUND)
        with closing(silent.accept()[0]):  # it is in the library now
            time.sleep(0.5)
            os.kill(started.processes[0].pid, signal.SIGTERM)
            (ended,) = started.wait()
    assert ended.exit_code == ExitCode.STOPPED, ended.stderr
    assert lines_of(ended.stderr) == ["stopped: received SIGTERM"]


def join_patiently() -> None:
    run_command(lambda: DistributedContext.start(600))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RANK", "2", "RANK=2: with 2 processes it must be from 0 to 1"),
        ("RANK", "x", "RANK=x: give a number"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK=-1: give a number"),
        ("LOCAL_RANK", "3", "LOCAL_RANK=3: with 2 processes it must be from 0 to 1"),
        ("WORLD_SIZE", "0", "WORLD_SIZE=0: give a number from 1"),
        ("WORLD_SIZE", "9" * 4000, "WORLD_SIZE=9+ … 9+: give a number from 1"),
        ("WORLD_SIZE", "²", "WORLD_SIZE=²: give a number"),
        ("LOCAL_WORLD_SIZE", "", "LOCAL_WORLD_SIZE=: give a number"),
        ("MASTER_PORT", "abc", "MASTER_PORT=abc: give a number"),
        ("MASTER_PORT", "99999", "MASTER_PORT=99999: give a port from 1 to 65535"),
        ("MASTER_ADDR", "", "MASTER_ADDR is not set"),
    ],
)
def test_a_place_in_a_launch_that_cannot_be_is_refused(name, value, said):
    environment = {**PLACE, "MASTER_PORT": "29500"}
    check_place(environment)
    with pytest.raises(InputError, match=said) as refused:
        check_place({**environment, name: value})
    assert len(str(refused.value)) <= 500


def train(config) -> None:
    run_command(lambda: train_here(config))


@pytest.mark.parametrize("name", ["metrics.jsonl", "status.json", "config.json"])
def test_what_only_the_first_process_cannot_write_ends_all_with_one_line(shards, tmp_path, name):
    config = tiny_config(shards, tmp_path / "run", max_steps=2)
    run(train_here, replace(config, max_steps=1), num_processes=2)
    (config.out / name).unlink()
    (config.out / name / "inner").mkdir(parents=True)
    ended = start(train, config, num_processes=2).wait()
    assert [end.exit_code for end in ended] == [2, 2], [end.stderr for end in ended]
    (line,) = [line for end in ended for line in lines_of(end.stderr)]
    assert str(config.out / name) in line
    if name != "status.json":
        status = json.loads((config.out / "status.json").read_text())
        assert (status["state"], status["code"], f"error: {status['reason']}") == ("failed", 2, line)
