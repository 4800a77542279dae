"""A job script learns the exit code of a training from run-status, whatever its launcher ends with."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import REPOSITORY, free_port, start

from glioma_dist.cli.run_status import find_status
from glioma_dist.config.launch_files import FOLDER
from glioma_dist.distributed.exit_codes import VARIABLE
from glioma_dist.training.status import STATUS, StatusFile

ENDING = str(Path(__file__).with_name("ending.py"))
LAUNCH = FOLDER / "jobs" / "launch.sh"
CODES = {
    "finished": 0,
    "unexpected": 1,
    "partial": 1,
    "exited": 1,
    "user_error": 2,
    "out_of_memory": 3,
    "non_finite_loss": 4,
    "unavailable": 69,
    "stopped": 75,
    "killed": 75,
}
QUICK = ("user_error", "unavailable")
"""Endings that are tried with launchers in every run of the tests, the others in those marked slow."""
LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--config_file", str(FOLDER / "cpu_2_processes.yaml")],
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2"],
    "python": [],
}


def launch(launcher: str, *words: str) -> None:
    """What a launcher does in a process that has PyTorch already."""
    module, *flags = LAUNCHERS[launcher] or [ENDING]
    if launcher == "accelerate":
        flags += ["--main_process_port", str(free_port())]
    if launcher == "torchrun":
        flags += ["--master-port", str(free_port())]
    sys.argv = [module, *flags, *([ENDING] if flags else []), *words]
    if flags:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(module, run_name="__main__")


def ended(launcher: str, codes: Path, *words: str) -> int:
    environment = {VARIABLE: str(codes), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    (process,) = start(launch, launcher, *words, environment=environment).wait()
    return process.exit_code


def cases(launchers: dict | list) -> list:
    """Each launcher with each ending."""
    return [
        pytest.param(launcher, ending, marks=() if launcher == "python" or ending in QUICK else pytest.mark.slow)
        for launcher in launchers
        for ending in CODES
    ]


@pytest.mark.parametrize(("launcher", "ending"), cases(LAUNCHERS))
def test_the_code_of_a_start_that_left_no_status(tmp_path, launcher, ending):
    """For example a mistyped flag, or a machine that did not join."""
    code = ended(launcher, tmp_path / "codes", ending)
    assert launcher == "python" or code in (0, 1)  # launchers have no other
    status = find_status(str(tmp_path / "run"), tmp_path / "codes")
    if ending == "finished":  # no training: it would have left a status
        assert (status.code, status.next) == (2, "fix")
        return
    assert status.code == CODES[ending]
    assert status.next == ("run again" if status.code in (69, 75) else "fix")


@pytest.mark.parametrize(
    ("launcher", "ending"),
    [case for case in cases(["torchrun", "accelerate"]) if case.values[1] not in ("finished", "killed")],
)
def test_the_cause_counts_and_not_what_it_did_to_the_other_process(tmp_path, launcher, ending):
    """Rank 1 ends, and the launcher stops rank 0, which then ends with 75."""
    ended(launcher, tmp_path / "codes", ending, "1")
    assert find_status(str(tmp_path / "run"), tmp_path / "codes").code == CODES[ending]


def test_no_process_of_a_launch_began(tmp_path):
    (tmp_path / "codes").mkdir()
    status = find_status(str(tmp_path / "run"), tmp_path / "codes")
    assert (status.state, status.code, status.next) == ("not begun", 69, "run again")


@pytest.fixture
def environment(tmp_path):
    """With a program glioma-dist, as an installation has it."""
    program = tmp_path / "bin" / "glioma-dist"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom glioma_dist.cli.program import main\nmain()\n")
    program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}


@pytest.mark.parametrize("ending", ["finished", "user_error", "unavailable", "killed", "unexpected"])
def test_the_container_ends_with_the_code(tmp_path, environment, ending):
    if ending == "finished":
        (tmp_path / "run").mkdir()
        StatusFile(tmp_path / "run", 3, 3).ended(None)
    command = ["bash", str(LAUNCH), str(tmp_path / "run"), sys.executable, ENDING, ending]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == CODES[ending], process.stderr
    assert "next: " in process.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["bin"] + ["run"] * (ending == "finished"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_container_hands_a_request_to_stop_on(tmp_path, environment, number):
    """And ends with the code of the training, which is still saving when a second request comes."""
    command = ["bash", str(LAUNCH), str(tmp_path / "run"), sys.executable, ENDING, "finished", "7"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("tmp.*/rank-0")):
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "exit code 75: stopped before the run resumed" in out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_a_training_is_stopped_and_resumed_in_a_container(shards, tmp_path, environment, launcher):
    """Two processes, in one folder of a run that nothing has prepared."""
    out = tmp_path / "run"
    train = ["-m", "glioma_dist", "train", "--out", str(out), "--data.train", str(shards / "train")]
    train += ["--data.val", str(shards / "val"), "--data.size", "64x64", "--data.workers", "0"]
    train += ["--model.encoder", "mit_tiny", "--batch-size", "4", "--max-steps", "60", "--save-every", "10"]
    module, *flags = LAUNCHERS[launcher]
    flags += ["--main_process_port" if launcher == "accelerate" else "--master-port", str(free_port())]
    command = ["bash", str(LAUNCH), str(out), sys.executable, "-m", module, *flags, *train]
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    shutil.rmtree(out, ignore_errors=True)
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        until = time.monotonic() + 240
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text().count("\n") > 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        process.terminate()
        assert process.wait(120) == 75
    status = json.loads((out / STATUS).read_text())
    assert status["state"] == "stopped"
    assert status["checkpoint_step"] < 60
    assert subprocess.run(command, env=environment, timeout=240, check=False).returncode == 0
    refused = subprocess.run([*command, "--lr", "1"], env=environment, timeout=240, check=False)
    assert refused.returncode == 2  # another run's settings; status.json says finished
