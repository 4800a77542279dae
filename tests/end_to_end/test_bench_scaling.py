"""The scaling benchmark at a size of nothing: its rows, its ends, and that it continues."""

import json
import os
import time
from contextlib import nullcontext

import cv2
import pytest
from helpers import REPOSITORY, command

from glioma_dist.benchmark import scaling
from glioma_dist.benchmark.scaling_cell import Clock
from glioma_dist.config.gpu_benchmarks import ScalingConfig
from glioma_dist.size import Size

TOYS = """
import json, os, sys, time
cell, shards, folder = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
rank = int(os.environ["RANK"])
def is_well():
    found = {"seconds": 2.0 + rank, "seconds_between": 1.0, "num_steps": 3, "peak_gib": 0.5 + rank}
    found |= {"peak_reserved_gib": None, "numerics": {"cudnn.benchmark": False}}
    json.dump(found, open(f"{folder}/{rank}.json", "w"))
def is_full():
    if rank == 1:
        print("error: out of memory: smaller images")
        sys.exit(3)
    is_well()
def is_broken():
    raise ValueError("odd")
def hangs():
    time.sleep(600 * rank)
def is_killed():
    os.kill(os.getpid(), 9)
def waits_for_one_without_memory():
    if rank == 1:
        print("error: out of memory: smaller images")
        sys.exit(3)
    print("another process of this run ended", flush=True)
    time.sleep(600)
def waits_for_one_that_failed():
    if rank == 1:
        raise ValueError("odd")
    time.sleep(600)
globals()[shards]()
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """The row of a launch of two processes, each of which does what one of TOYS does."""
    (tmp_path / "toys.py").write_text(TOYS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY)]))
    monkeypatch.setattr(scaling, "CELL_MODULE", "toys")
    config = ScalingConfig(sizes=(Size(64, 64),), encoder="mit_tiny", num_gpus=(2,), engines=("ddp",), repeats=3)
    (cell,) = scaling.make_cells(config, "cpu", 2)
    return lambda toy, timeout_s=60: scaling.measure(cell, toy, "cpu", 2, timeout_s)


def test_the_slowest_process_sets_the_time(launch):
    row = launch("is_well")
    assert (row["status"], row["error"]) == ("ok", None)
    assert row["images_per_second"] == pytest.approx(2 * 3 / 3.0)
    assert row["step_seconds"] == pytest.approx(1.0)
    assert row["waiting_share"] == pytest.approx(0.5)
    assert row["peak_gib"] == [0.5, 1.5]
    assert row["numerics"] == {"cudnn.benchmark": False}
    assert row["mfu"] is None


@pytest.mark.parametrize(
    ("toy", "status", "words"),
    [
        ("is_full", "out of memory", "smaller images"),
        ("is_broken", "failed", "ValueError: odd"),
        ("is_killed", "out of memory", "the system ended the process"),  # as `bench resolution` has it
        ("is_nothing", "failed", "KeyError"),
        ("waits_for_one_without_memory", "out of memory", "smaller images"),
        ("waits_for_one_that_failed", "failed", "ValueError: odd"),
    ],
)
def test_each_end_is_a_row(launch, monkeypatch, toy, status, words):
    monkeypatch.setattr(scaling, "SECONDS_AFTER_FAILURE", 0.5)
    row = launch(toy)
    assert row["status"] == status
    assert words in row["error"]
    assert row["images_per_second"] is None


def test_a_launch_that_hangs_is_ended(launch):
    start = time.monotonic()
    assert launch("hangs", 2)["status"] == "timed out"
    assert time.monotonic() - start < 60


def test_the_clock_counts_what_lies_between_steps_and_not_the_warm_up():
    clock = Clock(warm_up=1)
    for number in range(3):
        if number:
            time.sleep(0.05)
        clock.watch(lambda: time.sleep(0.1), None, number)
    assert len(clock.ends) == 2
    assert 0.3 <= clock.seconds < 5
    assert 0.1 <= clock.seconds_between <= clock.seconds - 0.2


def test_one_timed_step_counts_the_wait_for_its_batch_and_without_a_warm_up_the_clock_starts_with_it():
    for warm_up, least in ((1, 0.05), (0, 0.0)):
        clock = Clock(warm_up)
        for number in range(warm_up + 1):
            time.sleep(0.05)
            clock.watch(lambda: None, None, number)
        assert len(clock.ends) == 1
        assert least <= clock.seconds_between <= clock.seconds < 5
        assert (clock.seconds_between == 0) == (warm_up == 0)


@pytest.mark.parametrize(("given", "told"), [(None, ", 1 thread"), ("2", ", 2 threads")])
def test_a_row_names_the_threads_that_a_process_of_a_launch_has(monkeypatch, tmp_path, given, told):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr("torch.get_num_threads", lambda: int(given or 8))  # as PyTorch does
    monkeypatch.setattr(scaling, "find_device", lambda: "cpu")
    nothing = dict.fromkeys(("images_per_second", "step_seconds", "waiting_share", "peak_gib"))
    monkeypatch.setattr(scaling, "launch", lambda *given: nothing | {"status": "out of memory", "error": "full"})
    monkeypatch.setattr(scaling, "drawn_or_given", lambda data, count: nullcontext(str(data)))
    (row,) = scaling.bench(
        ScalingConfig(sizes=(Size(64, 64),), encoder="mit_tiny", num_gpus=(1,), out=tmp_path / "out")
    )
    assert row["device"].endswith(told)


def test_each_engine_is_measured_once(shards, quick_python, tmp_path):
    flags = ("--sizes", "64x64", "--encoder", "mit_tiny", "--repeats", 2, "--warm-up", 1, "--workers", 1)
    flags = (*flags, "--num-gpus", 1, 2, "--data", shards / "train", "--out", tmp_path / "out")
    done = command("bench scaling", *flags, timeout=600, python=quick_python)
    assert done.exit_code == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert [(row["engine"], row["num_gpus"], row["status"]) for row in rows] == [
        ("single", 1, "ok"),
        ("ddp", 2, "ok"),
        ("fsdp2", 2, "skipped"),
        ("spatial", 2, "ok"),
    ], rows
    for row in rows:
        if row["status"] == "ok":
            assert row["images_per_second"] == pytest.approx(row["images"] / row["step_seconds"])
            assert 0 <= row["waiting_share"] < 1
            assert len(row["peak_gib"]) == row["num_gpus"]
            assert all(0.001 < peak < 5 for peak in row["peak_gib"])
    assert "| spatial parallel | 2 |" in (tmp_path / "out" / "scaling.md").read_text()
    assert all(cv2.imread(str(tmp_path / "out" / f"scaling_{name}.png")).size for name in ("speed", "memory"))

    start = time.monotonic()
    again = command("bench scaling", *flags, timeout=600, python=quick_python)
    assert again.exit_code == 0, again.stderr
    assert json.loads((tmp_path / "out" / "scaling.json").read_text())[:2] == rows[:2]
    assert "single" not in again.stdout
    assert time.monotonic() - start < 120


@pytest.mark.parametrize(
    ("words", "flags", "environment"),
    [
        ("--num_processes 1", (), {"WORLD_SIZE": "2"}),
        ("/nowhere", ("--data", "/nowhere"), {}),
        ("--repeats 0", ("--repeats", 0), {}),
    ],
)
def test_what_cannot_be_measured_is_said_before_it_begins(tmp_path, words, flags, environment):
    done = command("bench scaling", *flags, "--out", tmp_path / "out", environment=environment)
    assert done.exit_code == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()
