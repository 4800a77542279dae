"""The runner of the proof run: what a check does not show has not passed, and no end of a check ends the run."""

import json
import math
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from forks import wait_until
from helpers import REPOSITORY

from glioma_dist.benchmark import devices
from glioma_dist.benchmark.proof import interruption, preflight, runner, several
from glioma_dist.benchmark.proof import prove as proving
from glioma_dist.benchmark.proof.checks import CHECKS
from glioma_dist.benchmark.proof.interruption import EndedEarlyError
from glioma_dist.benchmark.proof.lines import Findings, Line, Setting, judge, read_findings
from glioma_dist.benchmark.proof.runner import PATIENCE_SIDE_BY_SIDE, Check, run_check, run_checks
from glioma_dist.config.gpu_benchmarks import ProofConfig
from glioma_dist.distributed import cgroups
from glioma_dist.errors import InputError
from glioma_dist.report.proof_page import proof_page

TOYS = """
import os, signal, subprocess, sys, time
def good(setting, findings):
    findings.at_most("one", 1.0, 2.0)
    findings.equal("two", "a", "a")
def raises(setting, findings):
    findings.at_most("one", 1.0, 2.0)
    raise ValueError("odd")
def exits_early(setting, findings):
    findings.at_most("one", 1.0, 2.0)
    sys.exit(0)
def says_nothing(setting, findings):
    pass
def is_killed(setting, findings):
    findings.at_most("one", 1.0, 2.0)
    os.kill(os.getpid(), signal.SIGKILL)
def crashes(setting, findings):
    import ctypes
    ctypes.string_at(0)
def ends_badly(setting, findings):
    good(setting, findings)
    os._exit(3)
def hangs(setting, findings):
    findings.at_most("one", 1.0, 2.0)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(f"{os.environ['CHILD']}.{child.pid}", "w").close()
    time.sleep(600)
def waits_for_the_other(setting, findings):
    good(setting, findings)
    here = os.environ["SEEN"]
    open(os.path.join(here, str(os.getpid())), "w").close()
    until = time.monotonic() + 30
    while len(os.listdir(here)) < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
def says_more(setting, findings):
    good(setting, findings)
    findings.at_most("three", 1.0, 2.0)
"""
LIGHT = Setting("cpu", 1, "shards", "folder")


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Callable[..., list[Line]]:
    """Run one of TOYS, a check that owes the lines "one" and "two"."""
    (tmp_path / "toys.py").write_text(TOYS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(proving.__file__).parents[3]}")

    def run(name: str, seconds: float = 60, **fields: object) -> list[Line]:
        return run_check(Check(name, f"toys:{name}", ("one", "two"), seconds, **fields), LIGHT, tmp_path)[0]

    return run


def children(folder: Path) -> list[int]:
    """Of checks that hang."""
    return [int(path.suffix[1:]) for path in folder.glob("child.*")]


def check_gone(pids: list[int]) -> None:
    for pid in pids:
        wait_until(
            lambda pid=pid: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE,
            what="what the check started is still there",
        )


def told(lines: list[Line]) -> list[tuple[str, str]]:
    return [(line.name, line.status) for line in lines]


def test_a_check_that_shows_all_has_passed(toy):
    assert told(toy("good")) == [("one", "PASS"), ("two", "PASS")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "exit code 1: ValueError: odd"),
        ("exits_early", "the check ended without this line"),
        ("is_killed", "killed by SIGKILL"),
    ],
)
def test_what_was_shown_before_an_end_stays_and_the_rest_has_failed(toy, name, reason):
    lines = toy(name)
    assert told(lines) == [("one", "PASS"), ("two", "FAIL")]
    assert reason in lines[1].note


def test_nothing_shown_is_nothing_passed(toy):
    assert told(toy("says_nothing")) == [("one", "FAIL"), ("two", "FAIL")]
    lines = toy("crashes")
    assert told(lines) == [("one", "FAIL"), ("two", "FAIL")]
    assert "killed by SIGSEGV" in lines[0].note
    assert told(toy("is_no_function")) == [("one", "FAIL"), ("two", "FAIL")]


def test_a_check_that_ends_badly_after_its_last_line_fails(toy):
    lines = toy("ends_badly")
    assert told(lines) == [("one", "PASS"), ("two", "PASS"), ("its process ends well", "FAIL")]
    assert "exit code 3" in lines[-1].note


def test_a_line_that_nobody_owes_fails(toy):
    assert told(toy("says_more"))[-1] == ("three", "FAIL")


def test_a_check_that_hangs_is_ended_with_all_that_it_started(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    start = time.monotonic()
    lines = toy("hangs", seconds=1.5)
    assert time.monotonic() - start < 60
    assert told(lines) == [("one", "PASS"), ("two", "FAIL")]
    assert "stopped: not done after 6 s" in lines[1].note
    assert len(children(tmp_path)) == 1
    check_gone(children(tmp_path))


def side_by_side(*names: str) -> list[Check]:
    return [Check(f"{number}", f"toys:{name}", ("one", "two"), 60, measures=False) for number, name in enumerate(names)]


def test_checks_that_measure_nothing_run_side_by_side(toy, tmp_path, monkeypatch):
    (tmp_path / "seen").mkdir()
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    checks = [
        *side_by_side("waits_for_the_other", "waits_for_the_other"),
        Check("last", "toys:good", ("one", "two"), 60),
    ]
    found = list(run_checks(checks, LIGHT, tmp_path, at_once=2))
    assert [check.name for check, _, _ in found] == ["0", "1", "last"]
    assert [line.status for _, lines, _ in found for line in lines] == ["PASS"] * 6


def test_nothing_is_left_of_checks_side_by_side_whose_run_is_given_up(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    results = run_checks(side_by_side("good", "hangs", "hangs"), LIGHT, tmp_path, at_once=2)
    next(results)
    wait_until(lambda: len(children(tmp_path)) == 2)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 30
    check_gone(children(tmp_path))


def test_a_process_that_the_system_does_not_end_is_left_behind(tmp_path, monkeypatch):
    """As one that waits for the driver of a GPU that hangs: the next check runs."""
    start, started = subprocess.Popen, []
    with monkeypatch.context() as patch:
        patch.setattr(runner.os, "killpg", lambda *_: None)
        patch.setattr(runner.subprocess, "Popen", lambda *a, **how: started.append(start(*a, **how)) or started[0])
        patch.setattr(runner, "SECONDS_TO_DIE", 0.1)
        ending = runner._run(["sleep", "60"], {}, 0.1, tmp_path / "log", threading.Event())
    assert ending.reason == "not done after 0.1 s, and the system does not end it; look at nvidia-smi"
    assert started[0].poll() is None
    started[0].kill()
    started[0].wait()


@pytest.mark.parametrize(
    ("cores", "quotas", "memory", "shared", "at_once"),
    [
        (16, [], 80.0, True, 4),
        (128, [8.0, 64.0], 80.0, True, 2),  # a container that sees all CPUs of its machine
        (128, [0.5], 80.0, True, 1),
        (16, [], 8.0, True, 2),
        (16, [], 0.0, True, 1),
        (16, [], 80.0, False, 1),  # compute mode Exclusive_Process
    ],
)
def test_checks_run_side_by_side_as_the_machine_allows(monkeypatch, cores, quotas, memory, shared, at_once):
    monkeypatch.setattr(proving.os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setattr(proving, "cpus_of_cgroups", lambda: iter(quotas))
    monkeypatch.setattr(proving, "gpu_memory", lambda: memory)
    monkeypatch.setattr(proving, "gpus_can_be_shared", lambda: shared)
    assert proving.checks_at_once("cuda") == at_once
    assert proving.checks_at_once("cpu") == 1


@pytest.mark.parametrize(
    ("driver", "smi", "branch"),
    [("580.65.06", None, 580.0), (None, "570.124.06", 570.0), (None, None, math.nan), (None, "has failed", math.nan)],
)
def test_the_driver_is_known_without_nvidia_smi(monkeypatch, tmp_path, driver, smi, branch):
    """Containers that may compute and no more have none."""
    if smi is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{smi}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(preflight, "find_driver", lambda: driver)
    assert preflight.driver_version() == pytest.approx(branch, nan_ok=True)


@pytest.mark.parametrize(
    ("files", "v2", "cpus"),
    [
        ({"cpu.max": "max 100000"}, True, []),
        ({"cpu.max": "250000 100000"}, True, [2.5]),
        ({"cpu.cfs_quota_us": "800000", "cpu.cfs_period_us": "100000"}, False, [8.0]),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, False, []),
        ({}, True, []),
    ],
)
def test_limits_on_time_are_worth_cpus(monkeypatch, tmp_path, files, v2, cpus):
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(cgroups, "_folders", lambda controller: iter([(tmp_path, v2)]))
    assert [*cgroups.cpus_of_cgroups()] == cpus


@pytest.mark.parametrize(
    ("said", "gib", "shared"),
    [
        ("memory.total) printf '81559\\n40960\\n';; compute_mode) printf 'Default\\nDefault\\n'", 40.0, True),
        ("compute_mode) printf 'Default\\nExclusive_Process\\n'", 0.0, False),
        ("memory.total) echo '[N/A]'", 0.0, True),
    ],
)
def test_nvidia_smi_is_asked_for_memory_and_mode(monkeypatch, tmp_path, said, gib, shared):
    (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\ncase "${{1#--query-gpu=}}" in {said};; *) exit 1;; esac\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert (devices.gpu_memory(), devices.gpus_can_be_shared()) == (gib, shared)


def test_a_check_of_two_gpus_is_skipped_on_one_and_never_begun(toy):
    lines = toy("is_killed", devices=2)
    assert told(lines) == [("one", "SKIPPED"), ("two", "SKIPPED")]
    assert "needs 2 GPUs; there is 1" in lines[0].note


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"value": 1.0, "relation": "at most", "limit": 1.0}, "PASS"),
        ({"value": 1.1, "relation": "at most", "limit": 1.0}, "FAIL"),
        ({"value": 1, "relation": "at least", "limit": 1.0}, "PASS"),
        ({"value": 0, "relation": "at least", "limit": 1.0}, "FAIL"),
        ({"value": 3, "relation": "equal to", "limit": 3}, "PASS"),
        ({"value": 3, "relation": "equal to", "limit": 4}, "FAIL"),
        ({"value": "3", "relation": "equal to", "limit": 3}, "FAIL"),
        ({"value": "b", "relation": "at most", "limit": "c"}, "FAIL"),
        ({"value": math.nan, "relation": "at most", "limit": 1.0}, "FAIL"),
        ({"value": math.nan, "relation": "equal to", "limit": math.nan}, "FAIL"),
        ({"value": -math.inf, "relation": "at most", "limit": 1.0}, "FAIL"),
        ({"value": 1.0, "relation": "at most", "limit": math.inf}, "FAIL"),
        ({"value": None, "relation": "at most", "limit": 1.0}, "FAIL"),
        ({"value": True, "relation": "equal to", "limit": 1}, "FAIL"),
        ({"value": "", "relation": "equal to", "limit": ""}, "FAIL"),
        ({"value": 1.0, "relation": "about", "limit": 1.0}, "FAIL"),
        ({"value": 1.0}, "FAIL"),
        ({}, "FAIL"),
        ({"skipped": "needs a GPU"}, "SKIPPED"),
    ],
)
def test_only_a_finite_figure_within_its_limit_passes(row, status):
    line = judge("check", {"name": "line", **row})
    assert line.status == status
    json.dumps(line.__dict__, allow_nan=False)


def test_a_line_cut_off_by_a_crash_is_none(tmp_path):
    file = tmp_path / "findings.jsonl"
    Findings(file).at_most("whole", 1.0, 2.0)
    with file.open("a") as cut:
        cut.write('{"name": "cut", "value": 1.0, "rel')
    assert set(read_findings(file)) == {"whole"}


def test_all_checks_of_one_gpu_end_within_ten_minutes():
    """One after the other, or those that measure nothing by two and more at once and with more time each."""
    alone = [check.seconds for check in CHECKS if check.devices == 1 and check.measures]
    beside = [check.seconds for check in CHECKS if check.devices == 1 and not check.measures]
    assert sum(alone) + sum(beside) <= 600
    ends = [0.0, 0.0]
    for seconds in beside:
        ends[ends.index(min(ends))] += PATIENCE_SIDE_BY_SIDE * seconds
    assert sum(alone) + max(ends) <= 630


def test_names_are_there_once_and_a_target_is_a_function():
    from importlib import import_module

    names = [check.name for check in CHECKS]
    lines = [(check.name, line) for check in CHECKS for line in check.lines]
    assert len(set(names)) == len(names)
    assert len(set(lines)) == len(lines)
    for check in CHECKS:
        module, _, name = check.target.partition(":")
        assert callable(getattr(import_module(module), name))


def test_the_run_goes_through_all_checks_and_writes_the_page(tmp_path, monkeypatch):
    (tmp_path / "toys.py").write_text(TOYS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(proving.__file__).parents[3]}")
    toys = [Check(name, f"toys:{name}", ("one", "two"), 60) for name in ("crashes", "good")]
    toys.append(Check("many", "toys:good", ("one", "two"), 60, devices=3))
    lines = proving.prove(ProofConfig(device="cpu", out=tmp_path / "out"), toys)
    assert [line.status for line in lines] == ["FAIL", "FAIL", "PASS", "PASS", "SKIPPED", "SKIPPED"]
    content = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert content["finished"]
    assert [check["name"] for check in content["checks"]] == ["crashes", "good", "many"]
    page = (tmp_path / "out" / "proof.md").read_text()
    assert page == proof_page(content)
    assert "**2 PASS, 2 FAIL, 2 SKIPPED**" in page
    assert "It says nothing about a GPU" in page
    assert "| PASS | one | 1 | at most 2 |" in page
    assert (tmp_path / "out" / "logs" / "crashes.txt").is_file()


def test_a_wrong_name_and_a_machine_without_a_gpu_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--checks memroy: no such check; there are preflight, compile, "):
        proving.prove(ProofConfig(device="cpu", checks=("memroy",), out=tmp_path / "out"))
    monkeypatch.setattr(proving, "count_gpus", lambda: (0, "the driver is too old"))
    with pytest.raises(InputError, match=r"the driver is too old.*--device cpu"):
        proving.prove(ProofConfig(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cuda", "driver", "words"),
    [
        (None, "580.65.06", "built without CUDA, NVIDIA driver 580.65.06; install a PyTorch for CUDA"),
        ("13.0", None, "(too old): torch 2.9.1 for CUDA 13.0, no NVIDIA driver found; install driver 580 or newer"),
        ("13.0", "535.104.05", "NVIDIA driver 535.104.05; CUDA 13.0 needs driver 580 or newer: update it, or install"),
        ("12.8", "535.104.05", "for CUDA 12.8, NVIDIA driver 535.104.05; the driver is new enough: see whether"),
    ],
)
def test_where_there_is_no_gpu_the_line_has_the_versions_and_what_to_do(cuda, driver, words, tmp_path, monkeypatch):
    monkeypatch.setattr(proving, "count_gpus", lambda: (0, "too old"))
    monkeypatch.setattr(preflight, "find_driver", lambda: driver)
    monkeypatch.setattr(preflight.shutil, "which", lambda _: None)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(InputError, match=re.escape(words)) as refused:
        proving.prove(ProofConfig(checks=("preflight",), out=tmp_path / "out"))
    assert len(str(refused.value)) <= 500
    assert str(refused.value).endswith("or try the checks on the CPU with --device cpu")


def test_the_lowest_pytorch_of_the_checks_is_that_of_the_package():
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    main, minor = next(
        re.fullmatch(r"torch>=(\d+)\.(\d+)", each) for each in needed if each.startswith("torch>")
    ).groups()
    assert 100 * int(main) + int(minor) == preflight.LEAST_TORCH


def test_a_launch_that_fails_before_one_is_killed_has_not_shown_how_the_other_ends(tmp_path, monkeypatch):
    """The first ends as one that lost another, and the second, which waits for the first to speak, can be killed."""
    ranks = [subprocess.Popen(each) for each in ([sys.executable, "-c", "raise SystemExit(69)"], ["sleep", "60"])]
    monkeypatch.setattr(several, "start_on", lambda *_: ranks)
    with pytest.raises(EndedEarlyError, match="ended with \\[69, None\\] before one was killed"):
        several.kill_one(Setting("cuda", 2, "shards", str(tmp_path)), Findings(tmp_path / "findings.jsonl"))
    assert read_findings(tmp_path / "findings.jsonl") == {}
    assert ranks[1].poll() is not None


def test_a_run_that_fails_before_it_is_asked_to_stop_has_not_shown_how_long_that_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(EndedEarlyError, match="ended with 1 before it was asked to stop"):
        interruption.stop_and_resume(Setting("cuda", 1, "shards", str(tmp_path)), Findings(tmp_path / "findings.jsonl"))
    found = read_findings(tmp_path / "findings.jsonl").values()
    assert [judge("interruption", row).status for row in found] == ["FAIL", "FAIL"]
