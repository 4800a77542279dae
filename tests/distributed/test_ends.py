"""How processes of a launch leave each other: in order, when one's memory is full, when NCCL's watchdog ends one."""

import atexit
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from engines import fsdp2
from helpers import REPOSITORY, change_loss, run, start, tiny_config

from glioma_dist.cli import program
from glioma_dist.config import ScaleConfig, TrainConfig
from glioma_dist.distributed import launcher, leaving
from glioma_dist.distributed import run_command as run_commands
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import ExitCode, InputError, UnavailableError

SECONDS_OF_ADVICE = 8.0


def end_in_order(folder: Path) -> None:
    """Say whether the connections are there when Python ends; by a handler that runs after those of the context."""
    atexit.register(lambda: (folder / f"{os.getpid()}").write_text(str(dist.is_initialized())))
    from glioma_dist.distributed.context import DistributedContext

    DistributedContext.start().wait()
    atexit._run_exitfuncs()


def test_every_process_closes_its_connections_at_its_end(tmp_path):
    run(end_in_order, tmp_path, num_processes=2)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["False", "False"]


def leave_a_dead_process() -> float:
    """Seconds that it takes to leave where the other process is gone, in the middle of a communication."""
    from glioma_dist.distributed.context import DistributedContext

    here = DistributedContext.start()
    here.wait()
    if here.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError):
        dist.all_reduce(torch.ones(1))
    began = time.monotonic()
    assert leaving.leave()
    assert not dist.is_initialized()
    return time.monotonic() - began


def test_leaving_does_not_wait_for_a_dead_process():
    survivor, dead = start(leave_a_dead_process, num_processes=2).wait()
    assert (survivor.exit_code, dead.exit_code) == (0, -signal.SIGKILL), survivor.stderr
    assert survivor.value < leaving.SECONDS_TO_LEAVE


def leave_a_library_that_hangs() -> tuple[bool, float]:
    from glioma_dist.distributed.context import DistributedContext

    DistributedContext.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "destroy_process_group", lambda: time.sleep(3600))
        began = time.monotonic()
        return leaving.leave(1.0), time.monotonic() - began


def test_leaving_is_bounded_where_the_library_hangs():
    for left, seconds in run(leave_a_library_that_hangs, num_processes=2):
        assert not left
        assert seconds < 60


def test_without_a_launch_there_is_nothing_to_leave():
    assert run(leaving.leave) == [True]


def end_and_be_asked_to(local_rank: str, is_shared: bool) -> None:
    """End, as the second process, with an error; a launcher that has seen that another ended asks it to end, too."""
    os.environ |= {"RANK": "1", "LOCAL_RANK": local_rank}

    def fail() -> None:
        error = UnavailableError("machine-a does not answer")
        error.is_shared = is_shared
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise error

    run_command(fail)


@pytest.mark.parametrize(("local_rank", "is_shared", "is_told"), [("0", False, 1), ("1", False, 0), ("0", True, 0)])
def test_the_first_process_of_a_machine_says_why_it_ends_though_its_launcher_ends_it(local_rank, is_shared, is_told):
    (ended,) = start(end_and_be_asked_to, local_rank, is_shared).wait()
    assert ended.exit_code == ExitCode.UNAVAILABLE
    assert ended.stderr.count("error: machine-a does not answer\n") == is_told


def refuse(folder: Path, told: str) -> None:
    """Refuse, as the second process of a launcher, what the first has refused with the line `told`."""
    for rank in ("0", "1"):
        (folder / rank).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_commands, "SECONDS_FOR_FIRST_PROCESS_TO_SPEAK", 0)
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", launcher.REPORT_VARIABLE: str(folder / "0" / "error.json")}
        if told:
            launcher.tell_launcher(told)
        os.environ |= {"RANK": "1", "LOCAL_RANK": "1", launcher.REPORT_VARIABLE: str(folder / "1" / "error.json")}
        run_command(lambda: raise_input_error("--reproducible cannot be had"))


def raise_input_error(message: str) -> None:
    raise InputError(message)


@pytest.mark.parametrize(
    ("told", "num_lines"), [("error: --reproducible cannot be had", 0), ("error: another reason", 1), ("", 1)]
)
def test_a_refusal_that_the_first_process_has_told_is_not_told_again(tmp_path, told, num_lines):
    """Even where the first process ends slowly, so that the launcher does not end this one in time."""
    (ended,) = start(refuse, tmp_path, told).wait()
    assert ended.exit_code == ExitCode.USER_ERROR
    assert ended.stderr == num_lines * "error: --reproducible cannot be had\n"


def refuse_alike(folder: Path, told: str, has_launcher: bool) -> float:
    """Refuse, as the second process of a launcher, what the first should refuse, too, and which leaves the line `told`
    after a second, or goes on. Returns the seconds."""
    for rank in ("0", "1"):
        (folder / rank).mkdir()
    first = json.dumps({"message": {"message": told}})
    if has_launcher:
        os.environ[launcher.REPORT_VARIABLE] = str(folder / "1" / "error.json")
    os.environ |= {"RANK": "1", "LOCAL_RANK": "1"}

    def fail() -> None:
        with launcher.alike_on_a_machine():
            raise InputError("--config x.yaml: no such file")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_commands, "SECONDS_FOR_FIRST_PROCESS_TO_SPEAK", 0)
        patch.setattr(run_commands, "SECONDS_FOR_FIRST_PROCESS_TO_REFUSE", 3600 if told else 0.1)
        patch.setattr(run_commands, "bound_exit", lambda code: None)
        if told:
            threading.Timer(1, (folder / "0" / "error.json").write_text, (first,)).start()
        began = time.monotonic()
        with pytest.raises(SystemExit):
            run_command(fail)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("told", "has_launcher", "num_lines"),
    [
        ("error: --config x.yaml: no such file", True, 0),
        ("error: another reason", True, 1),
        ("", True, 1),
        ("", False, 0),
    ],
    ids=["alike", "for another reason", "alone", "without a launcher"],
)
def test_a_process_that_alone_refuses_what_all_should_says_so(tmp_path, told, has_launcher, num_lines):
    """Or nobody would: as where only one process cannot read the file of --config."""
    (ended,) = start(refuse_alike, tmp_path, told, has_launcher).wait()
    assert ended.stderr == num_lines * "error: --config x.yaml: no such file\n"
    assert ended.value < 60


def refuse_flags(commands: tuple[str, ...]) -> list[int]:
    """Run commands with a flag that none has, and one that the second process alone refuses; their exit codes."""
    codes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_commands, "SECONDS_FOR_FIRST_PROCESS_TO_SPEAK", 0)
        patch.setattr(run_commands, "bound_exit", lambda code: None)
        for name in commands:
            with pytest.raises(SystemExit) as ended:
                run_command(lambda name=name: program.run_one(name, ["--no-such-flag", "1"], name))
            codes.append(ended.value.code)
        if os.environ["RANK"] == "1":
            with pytest.raises(SystemExit) as ended:
                run_command(lambda: raise_input_error("only here"))
            codes.append(ended.value.code)
    return codes


def test_flags_are_refused_by_the_first_process_alone_and_what_one_finds_by_that_one():
    """Without a launcher that ends the others, too."""
    commands = tuple(program.COMMANDS)
    first, second = start(refuse_flags, commands, num_processes=2).wait()
    assert first.value == len(commands) * [ExitCode.USER_ERROR]
    assert second.value == (len(commands) + 1) * [ExitCode.USER_ERROR]
    assert first.stderr.count("error: ") == first.stderr.count("\n") == len(commands)
    assert second.stderr == "error: only here\n"


def refuse_launch(config: TrainConfig, with_fsdp2: bool) -> int:
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_commands, "SECONDS_FOR_FIRST_PROCESS_TO_SPEAK", 0)
        here = DistributedContext.start()
        with fsdp2(here) if with_fsdp2 else nullcontext(), pytest.raises(SystemExit) as ended:
            run_command(lambda: loop.train(config, here))
    return ended.value.code


@pytest.mark.parametrize(
    ("fields", "with_fsdp2", "expected"),
    [
        ({"batch_size": 3}, False, "--batch-size 3 cannot be shared by 2 processes"),
        ({"reproducible": True, "norm": "group"}, True, "--reproducible cannot be combined with FSDP2"),
        ({"scale": ScaleConfig(optimizer_in_backward=True)}, False, "--scale.optimizer-in-backward: weights would"),
    ],
    ids=["batch size", "FSDP2", "optimizer in backward"],
)
def test_what_the_launch_does_not_allow_is_told_once(shards, tmp_path, fields, with_fsdp2, expected):
    """Without a launcher that ends the others, too."""
    config = tiny_config(shards, tmp_path / "run", **fields)
    first, second = start(refuse_launch, config, with_fsdp2, num_processes=2).wait()
    assert (first.value, second.value) == (ExitCode.USER_ERROR, ExitCode.USER_ERROR)
    assert first.stderr.startswith(f"error: {expected}"), first.stderr
    assert (first.stderr.count("\n"), second.stderr) == (1, "")


def wait_until_ended(pid: int, seconds: float = 120) -> None:
    """Wait for a process that is no child of this one."""
    deadline = time.monotonic() + seconds
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            assert time.monotonic() < deadline
            time.sleep(0.1)


def fail_as_watchdog() -> None:
    """Rank 0 ends as NCCL's watchdog would end it: by std::terminate in another thread than the one that waits."""
    from glioma_dist.distributed.context import DistributedContext

    here = DistributedContext.start()
    here.wait()
    pids = here.gather_objects([os.getpid()])
    if here.rank == 1:
        wait_until_ended(pids[0])  # it has to be there when the other one looks for who is missing
        return
    assert leaving.call_at_terminate(here.end_as_watchdog)
    terminate = ctypes.CDLL("libstdc++.so.6")._ZSt9terminatev
    threading.Timer(0.5, terminate).start()
    dist.all_reduce(torch.ones(1))


def test_an_end_by_the_watchdog_is_a_lost_process():
    """Without the handler it is SIGABRT, which no scheduler takes for a reason to try again."""
    ended, other = start(fail_as_watchdog, num_processes=2).wait()
    assert (ended.exit_code, other.exit_code) == (ExitCode.UNAVAILABLE, 0)
    assert ended.stderr.startswith("error: NCCL's watchdog ended this process: rank 1 on "), ended.stderr
    assert ended.stderr.count("\n") == 1


def fill_memory(config, times: Path) -> None:
    """A training of which rank 1 finds its memory full in the third step, with advice that takes long."""
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.training import loop, memory

    rank, calls = int(os.environ["RANK"]), []

    def full(loss, *given):
        calls.append(1)
        if rank == 1 and len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return loss(*given)

    def think(*_given) -> str:
        (times / "asked").write_text(str(time.time()))
        time.sleep(SECONDS_OF_ADVICE)
        return "the advice"

    with pytest.MonkeyPatch.context() as patch:
        change_loss(patch, True, full)
        patch.setattr(memory, "advice", think)
        try:
            run_command(lambda: loop.train(config, DistributedContext.start()))
        finally:
            (times / str(rank)).write_text(str(time.time()))


def test_processes_do_not_wait_for_the_advice_of_one_whose_memory_is_full(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run")
    first, full = start(fill_memory, config, tmp_path, num_processes=2).wait()
    assert (first.exit_code, full.exit_code) == (ExitCode.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY), first.stderr
    assert first.stderr.startswith("error: out of memory on rank 1 with activation checkpointing none")
    assert "checkpoint saved at step 2" in first.stderr
    assert full.stderr.strip().endswith("the advice")
    asked, ended, ended_full = (float((tmp_path / name).read_text()) for name in ("asked", "0", "1"))
    assert ended < asked + SECONDS_OF_ADVICE <= ended_full


QUICK_END = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from glioma_dist.distributed.leaving import end_quickly

class Slow:
    def __del__(self):
        print("destroyed")

kept = Slow()
atexit.register(print, "at exit")
def write():
    time.sleep(0.3)
    print("thread")
threading.Thread(target=write).start()
pool = ThreadPoolExecutor(1)  # whose thread waits for work, as that of torch.compile
pool.submit(int).result()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("main")
end_quickly(int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_quick_end_leaves_out_nothing_but_to_destroy_objects(code):
    command = [sys.executable, "-c", QUICK_END, str(code)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "main\nthread\nat exit\n", "")
