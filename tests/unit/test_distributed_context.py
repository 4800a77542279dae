"""Who a process is: launches that are none are refused, sums and lists over processes, errors as lines, signals."""

import atexit
import errno
import os
import re
import signal
import sys
import time

import pytest
import torch
from helpers import Ended, run, start

from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.leaving import WATCHDOG_WAIT, WATCHDOG_WAIT_MS, shorten_watchdog_wait
from glioma_dist.distributed.lost_processes import SIGNS_OF_AN_END, SIGNS_OF_SILENCE
from glioma_dist.distributed.run_command import (
    as_run_error,
    run_command,
)
from glioma_dist.distributed.signals import SECONDS_BETWEEN_TWO_REQUESTS, STOP_SIGNALS, StopSignal
from glioma_dist.errors import (
    ExitCode,
    InputError,
    Interrupted,
    MemoryFullError,
    NonFiniteError,
    StopRequested,
    UnavailableError,
    as_error,
    one_line,
)


def join(numbers: list[list[float]]) -> tuple:
    """What each of several processes gets; rank r brings `numbers[r]`."""
    here = DistributedContext.start()
    mine = numbers[here.rank]
    total = here.sum(torch.tensor([*mine[:2], len(mine)], dtype=torch.float32))
    here.wait()
    found = here.rank, here.num_processes, here.is_main, total.tolist(), str(total.dtype), here.gather_objects(mine)
    return *found, os.environ.get(WATCHDOG_WAIT)


def test_several_processes_know_each_other_and_sum_and_gather():
    numbers = [[1.0, 2.0**-20], [2.0**24, 3.0, 5.0, 6.0], [4.0, 5.0]]
    for rank, found in enumerate(run(join, numbers, num_processes=3)):
        assert found[:3] == (rank, 3, rank == 0)
        # In fp32 the first sum would lose its last digit, and the second all of 2^-20.
        assert found[3] == [2.0**24 + 5, 8 + 2.0**-20, 8]
        assert found[4] == "torch.float64"
        assert found[5] == [number for part in numbers for number in part]
        assert found[6] == WATCHDOG_WAIT_MS


def test_the_wait_of_nccl_s_watchdog_is_a_user_s_own_where_one_is_set():
    environment = {WATCHDOG_WAIT: "15000"}
    shorten_watchdog_wait(environment)
    assert environment == {WATCHDOG_WAIT: "15000"}


def test_one_process_is_the_main_one(runtime):
    assert (runtime.rank, runtime.num_processes, runtime.is_main, runtime.device.type) == (0, 1, True, "cpu")
    assert runtime.sum(torch.tensor([1.5, 2])).tolist() == [1.5, 2]
    assert runtime.gather_objects(["a"]) == ["a"]


def test_a_launch_that_accelerate_did_not_notice_is_refused(runtime, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"started 2 processes but accelerate sees 1.*accelerate_configs/"):
        DistributedContext.start()


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


def end_while_asked_again(kind: type | None, number: int) -> None:
    """Ask to stop once more when the command is over, and Python is still at its end."""
    atexit.register(signal.raise_signal, number)
    run_command(lambda: None if kind is None else fail_with(kind))


def fail_with(kind: type) -> None:
    raise kind("as it was")


@pytest.mark.parametrize(
    ("kind", "code", "number", "rank"),
    [
        *((kind, code, signal.SIGTERM, "0") for kind, code in ((None, 0), (StopRequested, 75), (InputError, 2))),
        *((StopRequested, 75, number, "0") for number in STOP_SIGNALS),
        (InputError, 2, signal.SIGTERM, "1"),
    ],
)
def test_a_request_that_comes_when_all_is_done_changes_no_exit_code(kind, code, number, rank):
    """Launchers hand a signal on that the whole group got already."""
    (ended,) = start(end_while_asked_again, kind, int(number), environment={"RANK": rank}).wait()
    assert ended.exit_code == code, ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_interrupt_is_a_requested_stop():
    ended = run_failing(KeyboardInterrupt, "")
    assert (ended.exit_code, ended.stderr) == (ExitCode.STOPPED, "stopped: received SIGINT\n")


def test_a_bug_keeps_its_traceback():
    ended = run_failing(ValueError, "a bug")
    assert ended.exit_code not in (0, 2)
    assert "Traceback" in ended.stderr
    assert "ValueError: a bug" in ended.stderr


@pytest.fixture
def handlers():
    """A command that ends leaves handlers of its own."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_process_speaks_first(monkeypatch, capsys, handlers):
    """The others wait a while, for the launcher ends all as soon as one has ended."""
    slept = []
    monkeypatch.setattr("glioma_dist.distributed.run_command.time.sleep", slept.append)
    for rank, expected in (("0", []), ("1", [5]), ("7", [5])):
        slept.clear()
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end:
            fail(InputError, "seen by all")
        assert (slept, end.value.code) == (expected, 2)
        assert capsys.readouterr().err == "error: seen by all\n"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_to_stop_interrupts_or_is_noted_and_the_handler_is_put_back(number):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with StopSignal() as stop, stop.deferred():
            assert stop.request is None
            signal.raise_signal(number)
            assert str(stop.request) == f"received {signal.Signals(number).name}"
            with pytest.raises(Interrupted), stop.immediate():
                pytest.fail("a noted request interrupts at once")
        with StopSignal() as stop:
            with pytest.raises(Interrupted):
                signal.raise_signal(number)
            with stop.deferred():
                signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_was_ignored_stays_ignored():
    """As nohup does with SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.request is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_a_second_ctrl_c_of_a_user_goes_further():
    """A launcher hands the first one on at once."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs with it ignored
    try:
        with StopSignal() as stop, stop.deferred():
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            time.sleep(SECONDS_BETWEEN_TWO_REQUESTS)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [InputError, MemoryFullError, NonFiniteError, UnavailableError, StopRequested])
def test_every_error_has_its_own_exit_code_and_one_line(kind):
    ended = run_failing(kind, "file\nwith a line break, and long: " + "x" * 10**5)
    word = "stopped" if kind is StopRequested else "error"
    assert ended.exit_code == kind.exit_code
    assert re.fullmatch(rf"{word}: .*\n", ended.stderr)
    assert len(ended.stderr) < 520
    assert isinstance(as_error(kind.exit_code, "told by another"), kind)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device"),
        *(RuntimeError(sign) for sign in (*SIGNS_OF_AN_END, *SIGNS_OF_SILENCE)),
    ],
)
def test_advice_that_every_command_gives_names_no_flag(error):
    """Every command ends through `as_run_error`, and no flag but --help is one of all of them."""
    assert "--" not in str(as_run_error(error, 5.0))


def test_exit_codes_are_different():
    kinds = [InputError, MemoryFullError, NonFiniteError, UnavailableError, StopRequested]
    assert len({kind.exit_code for kind in kinds} | {0, 1}) == len(kinds) + 2


@pytest.mark.parametrize("name", ["k\udcf6ln.tif", "a\nb", "\x1b[31mred", "x" * 10**6, "\ud800", "名前"])
def test_any_name_becomes_one_printable_line(name):
    line = one_line(f"{name}: cannot be read")
    assert len(line) <= 500
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.encode("utf-8").endswith(b": cannot be read")


def test_importing_the_package_does_no_work():
    """No process group, no random draw, no thread number, no network: `import glioma_dist` alone brings no torch."""
    code = "import sys, glioma_dist, glioma_dist.errors; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


def test_a_thread_that_the_system_does_not_give_is_no_traceback():
    error = RuntimeError(os.strerror(errno.EAGAIN))  # PyTorch hands on what pthread_create(3) says
    assert as_run_error(error).exit_code == 69
    assert "no more threads or memory" in str(as_run_error(error))
