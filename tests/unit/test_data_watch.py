"""A training that waits for its data says so: which step's, what the workers do, and what helps."""

import os
import re
import signal
import time
from types import SimpleNamespace

import pytest
from forks import wait_until

from glioma_dist.data.worker_pool import WorkerPool, process_state
from glioma_dist.training import data_watch
from glioma_dist.training.data_watch import DataWatch


class Waiting:
    """A job that notes its sample and, where its task is to wait, does so until a byte comes through a pipe."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()

    def make(self, task, place, note):
        note(3, 12)
        return os.read(self.out, 1) if task == "wait" else task

    def describe(self, shard, place):
        raise AssertionError("it could read from the store that does not answer")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(data_watch, "SECONDS_TO_WARN", 0.3)
    monkeypatch.setattr(data_watch, "SECONDS_BETWEEN_LOOKS", 0.05)


@pytest.mark.parametrize("is_stopped", [False, True], ids=["slow", "stopped"])
def test_a_long_wait_is_told_once_while_it_lasts_with_the_workers_state(quick, monkeypatch, capfd, is_stopped):
    job, said = Waiting(), []
    with WorkerPool(1, job) as pool, DataWatch(pool, "rank 1 on host-b", 600) as watch:
        pid = pool._processes[0].pid
        monkeypatch.setattr(data_watch, "SECONDS_TO_WARN", 600.0)  # also on a busy machine the first wait is shorter
        with watch.waiting(40):
            pool.get(pool.submit(0, "at once", None))
        ticket = pool.submit(0, "wait", None)
        wait_until(lambda: pool.states() == [f"worker {pid} waits at sample 12 of shard 3"])
        if is_stopped:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: process_state(pid) == "was stopped by a signal")
        monkeypatch.setattr(data_watch, "SECONDS_TO_WARN", 0.6)
        with watch.waiting(41):
            wait_until(lambda: said.append(capfd.readouterr().err) or "\n" in "".join(said), what="while it lasts")
            time.sleep(0.7)  # in which it could be told again
            os.kill(pid, signal.SIGCONT)
            os.write(job.into, b"x")
            assert pool.get(ticket) == b"x"
    os.close(job.into)
    os.close(job.out)
    (line,) = ("".join(said) + capfd.readouterr().err).splitlines()
    doing = "was stopped by a signal" if is_stopped else "waits"
    assert re.match(r"warning: rank 1 on host-b has waited [1-9]\d* s for the data of step 41 \(", line)
    assert f"(worker {pid} {doing} at sample 12 of shard 3); after 600 s (--scale.timeout-s)" in line
    assert "--data.workers (now 1)" in line
    assert len(line) <= 500


def test_a_slow_model_is_not_told(quick, capfd):
    with WorkerPool(0) as pool, DataWatch(pool, "training", 600) as watch:
        for step in range(3):
            with watch.waiting(step):
                pass
            time.sleep(0.5)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("wait", "work", "is_told"), [(60, 10, True), (20, 40, False), (0, 50, False)])
def test_a_loader_slower_than_the_model_is_told_once(monkeypatch, capfd, wait, work, is_told):
    now = 0.0
    monkeypatch.setattr(data_watch, "time", SimpleNamespace(monotonic=lambda: now))
    watch = DataWatch(WorkerPool(0), "training", 600)  # without its thread, which looks at single waits
    for step in range(20):
        with watch.waiting(step):
            now += wait
        now += work
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == int(is_told)
    assert all("the loader is slower than the model; give more --data.workers (now 0)" in line for line in lines)


def test_the_state_of_a_process_that_is_gone_is_known():
    assert process_state(2**22 + 1) == "has ended"
    assert process_state(os.getpid()) == "runs"
