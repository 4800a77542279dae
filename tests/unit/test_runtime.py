"""Who a process is: launches that are none are refused, sums and lists over processes, errors as lines, signals."""

import os
import signal
import sys

import pytest
import torch
from helpers import Ended, run, start

from glioma_dist.errors import InputError
from glioma_dist.runtime import Runtime, StopSignal, run_command


def join(numbers: list[list[float]]) -> tuple:
    """What each of several processes gets; rank r brings `numbers[r]`."""
    here = Runtime.start()
    mine = numbers[here.rank]
    total = here.sum(torch.tensor([*mine[:2], len(mine)], dtype=torch.float32))
    here.wait()
    return here.rank, here.num_processes, here.is_main, total.tolist(), str(total.dtype), here.gather_objects(mine)


def test_several_processes_know_each_other_and_sum_and_gather():
    numbers = [[1.0, 2.0**-20], [2.0**24, 3.0, 5.0, 6.0], [4.0, 5.0]]
    for rank, found in enumerate(run(join, numbers, num_processes=3)):
        assert found[:3] == (rank, 3, rank == 0)
        # In fp32 the first sum would lose its last digit, and the second all of 2^-20.
        assert found[3] == [2.0**24 + 5, 8 + 2.0**-20, 8]
        assert found[4] == "torch.float64"
        assert found[5] == [number for part in numbers for number in part]


def test_one_process_is_the_main_one(runtime):
    assert (runtime.rank, runtime.num_processes, runtime.is_main, runtime.device.type) == (0, 1, True, "cpu")
    assert runtime.sum(torch.tensor([1.5, 2])).tolist() == [1.5, 2]
    assert runtime.gather_objects(["a"]) == ["a"]


def test_a_launch_that_accelerate_did_not_notice_is_refused(runtime, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"started 2 processes but accelerate sees 1.*accelerate_configs/"):
        Runtime.start()


def fail(kind: type, message: str) -> None:
    def raise_it() -> None:
        raise kind(message)

    run_command(raise_it)


def run_failing(kind: type, message: str, **environment: str) -> Ended:
    (ended,) = start(fail, kind, message, environment=environment).wait()
    return ended


def test_an_input_error_is_one_line_and_exit_code_2():
    ended = run_failing(InputError, "the file x: do y")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (2, "", "error: the file x: do y\n")


def test_a_worker_that_was_killed_is_one_line():
    """PyTorch raises this in whatever line the training process is at."""
    ended = run_failing(RuntimeError, "DataLoader worker (pid 12) is killed by signal: Killed. ")
    assert ended.exit_code == 2
    assert ended.stderr.startswith("error: DataLoader worker (pid 12) is killed by signal: Killed. Is memory full?")
    assert ended.stderr.count("\n") == 1


def test_an_interrupt_is_exit_code_130():
    ended = run_failing(KeyboardInterrupt, "")
    assert (ended.exit_code, ended.stderr) == (130, "stopped\n")


def test_a_bug_keeps_its_traceback():
    ended = run_failing(ValueError, "a bug")
    assert ended.exit_code not in (0, 2)
    assert "Traceback" in ended.stderr
    assert "ValueError: a bug" in ended.stderr


def test_the_first_process_speaks_first(monkeypatch, capsys):
    """The others wait a while, for the launcher ends all as soon as one has ended."""
    slept = []
    monkeypatch.setattr("glioma_dist.runtime.time.sleep", slept.append)
    for rank, expected in (("0", []), ("1", [5]), ("7", [5])):
        slept.clear()
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end:
            fail(InputError, "seen by all")
        assert (slept, end.value.code) == (expected, 2)
        assert capsys.readouterr().err == "error: seen by all\n"


def test_the_systems_wish_to_stop_is_noticed_and_the_handler_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert signal.getsignal(signal.SIGTERM) is before


def test_importing_the_package_does_no_work():
    """No process group, no random draw, no thread number, no network: `import glioma_dist` alone brings no torch."""
    code = "import sys, glioma_dist, glioma_dist.errors; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
