"""slurm.sbatch under a real SLURM on this machine: two nodes of one process each, on CPUs.

A store that answers slowly gives the tests the time to disturb a training, and costs no CPU time.
"""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
import torch
from faulty_server import files_of, serve
from helpers import REPOSITORY, rows, run, tiny_config, train_here

from glioma_dist.config.file import to_dict
from glioma_dist.config.launch_files import FOLDER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]
STEPS = 12
JOB = FOLDER / "jobs" / "slurm.sbatch"


class Site:
    """A cluster, a folder that its nodes share, a store whose answers take `pace` seconds, and a job's words."""

    def __init__(self, cluster, folder: Path, shards: Path) -> None:
        self.cluster, self.folder, self.shards, self.pace = cluster, folder, shards, 0.0
        self.out = folder / "run"
        self._answer = files_of(shards)

    def answer(self, method: str, path: str, headers: dict):
        time.sleep(self.pace if path.endswith(".tar") else 0)
        return self._answer(method, path, headers)

    def config(self, url: str | Path, out: Path):
        how = {"max_steps": STEPS, "epochs": 100, "eval_every": None, "save_every": 100, "batch_size": 2}
        return tiny_config(self.shards, out, train=f"{url}/train", val=f"{url}/val", **how)

    def submit(self, *words: str, flags: tuple[str, ...] = (), **variables: str) -> str:
        file = self.folder / "launch.yaml"  # as the package's, but CPUs are slow in bf16
        file.write_text(
            (FOLDER / "multi_node.yaml").read_text().replace("mixed_precision: bf16", "mixed_precision: 'no'")
        )
        here = {
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{self.cluster.environment['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "LAUNCH_FILE": str(file),
            "PROCESSES_PER_NODE": "1",
            **variables,
        }
        size = ("--gpus-per-node=2", "--cpus-per-task=1", "--output=job.out")
        return self.cluster.submit(
            self.folder, *size, *words, str(JOB), "run", "--config", "config.json", *flags, **here
        )

    def said(self) -> str:
        file = self.folder / "job.out"
        return file.read_text() if file.exists() else ""

    def wait_for_steps(self, number: int) -> None:
        """Until some steps are done, which no checkpoint has yet."""
        until = time.monotonic() + 600
        while not (self.out / "metrics.jsonl").exists() or len(rows(self.out)) < number:
            assert time.monotonic() < until, f"no step\n{self.said()}\n{self.cluster.logs()}"
            time.sleep(0.1)

    def wait_for_end(self, job: str) -> dict[str, str]:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        return self.cluster.wait_for(job, self.said(), lambda found: found.get("JobState") in ended, 1200)


@pytest.fixture
def site(tmp_path, shards):
    short = Path(shutil.copytree(shards, tmp_path / "shards"))
    nodes = (os.uname().nodename, f"{os.uname().nodename}-2")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "glioma-dist"
    program.write_text(f"#!{sys.executable}\nfrom glioma_dist.cli.program import main\nmain()\n")
    program.chmod(0o755)
    with slurm_cluster.Cluster(tmp_path / "slurm", nodes) as cluster:
        made = Site(cluster, tmp_path, short)
        with serve(made.answer) as server:
            (tmp_path / "config.json").write_text(json.dumps(to_dict(made.config(server.url, Path("run")))))
            made.pace = 0.4
            yield made


def train_with_one_thread(config) -> None:
    torch.set_num_threads(1)
    train_here(config)


def check_like_undisturbed(site: Site) -> None:
    """The weights and losses of a run that nothing stopped, on as many processes."""
    run(train_with_one_thread, site.config(site.shards, site.folder / "whole"), num_processes=2)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (site.out / "last" / name).read_bytes() == (site.folder / "whole" / "last" / name).read_bytes()
    assert [row["loss"] for row in rows(site.out)] == [row["loss"] for row in rows(site.folder / "whole")]


def training_processes(folder: Path) -> dict[int, int]:
    """Rank -> process of the training in a folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            settings = (path / "environ").read_text(errors="replace").split("\0")
            words = (path / "cmdline").read_text().split("\0")
        except OSError:
            continue
        ranks = [each.partition("=")[2] for each in settings if each.startswith("RANK=")]
        if ranks and f"PWD={folder}" in settings and "glioma_dist" in words and "launch" not in " ".join(words[:4]):
            found[int(ranks[0])] = int(path.name)
    return found


def signal_before_the_limit(site: Site, job: str) -> None:
    """What --signal=TERM@120 sends, to what srun started."""
    site.cluster.ask("scancel", "--signal=TERM", job)


def requeue_from_outside(site: Site, job: str) -> None:
    """As a preemption with PreemptMode=REQUEUE does it: SIGTERM to all of the job, and SIGKILL after KillWait."""
    site.cluster.ask("scontrol", "requeue", job)


def kill_a_process(site: Site, job: str) -> None:
    """On the second node."""
    os.kill(training_processes(site.folder)[1], signal.SIGKILL)


@pytest.mark.parametrize("disturb", [signal_before_the_limit, requeue_from_outside, kill_a_process])
def test_a_disturbed_job_is_requeued_resumes_and_ends_as_if_nothing_had_been(site, disturb):
    job = site.submit()
    site.wait_for_steps(3)
    disturb(site, job)
    site.cluster.wait_for(job, "not requeued", lambda found: int(found.get("Restarts", 0)) == 1)
    site.pace = 0.0
    ended = site.wait_for_end(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), site.said()
    resumed = re.findall(r"from step (\d+) to", site.said())
    assert len(resumed) == 2
    assert 3 <= int(resumed[1]) < STEPS
    assert "next: all work is done" in site.said()
    assert list(site.folder.glob("*.codes")) == []
    check_like_undisturbed(site)


def test_slurm_itself_sends_the_signal_before_the_time_limit(site):
    """Between 180 and 120 s before the limit of four minutes, because SLURM looks once a minute."""
    site.pace = 8.0
    job = site.submit("--time=4")
    site.cluster.wait_for(job, "not requeued", lambda found: int(found.get("Restarts", 0)) == 1)
    assert json.loads((site.out / "status.json").read_text())["state"] == "stopped"
    site.pace = 0.0
    assert site.wait_for_end(job)["JobState"] == "COMPLETED", site.said()
    check_like_undisturbed(site)


USER_ERRORS = {
    "a mistyped flag": ("--lr", "fast"),
    "data that are not there": ("--data.train", "nowhere"),
    "an encoder that is not there": ("--model.encoder", "mit_b9"),
}


@pytest.mark.parametrize("name", USER_ERRORS)
def test_a_users_error_is_not_requeued(site, name):
    ended = site.wait_for_end(site.submit(flags=USER_ERRORS[name]))
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), site.said()
    assert "error: " in site.said()
    assert "next: fix" in site.said()


def test_a_users_error_of_a_resumed_run_is_not_requeued(site):
    """Whose status.json says that it was stopped."""
    job = site.submit(MAX_RESTARTS="0")
    site.wait_for_steps(3)
    signal_before_the_limit(site, job)
    ended = site.wait_for_end(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0"), site.said()
    ended = site.wait_for_end(site.submit(flags=("--lr", "fast")))
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), site.said()


def test_a_cancelled_job_stays_cancelled_and_its_work_is_saved(site):
    job = site.submit()
    site.wait_for_steps(3)
    site.cluster.ask("scancel", job)
    ended = site.wait_for_end(job)
    time.sleep(2 * slurm_cluster.SECONDS_TO_RUN_AGAIN)
    assert (ended["JobState"], site.cluster.job(job)["JobState"]) == ("CANCELLED", "CANCELLED")
    assert ended["Restarts"] == "0"
    status = json.loads((site.out / "status.json").read_text())
    assert status["state"] == "stopped"
    assert status["checkpoint_step"] >= 3


PART_OF_A_STUDY = """#!/bin/bash
# In place of `glioma-dist reproduce`: each part is stopped once, as before a time limit, and part 3 has a user's error.
part=$(($4 + 1))
echo "$*" >> "said-$part"
[[ $part == 3 ]] && exit 2
[[ $(wc -l < "said-$part") == 2 ]] || exit 75
"""


def test_each_task_of_an_array_has_its_part_and_is_requeued_by_itself(site):
    """The script alone: what a study does is tested in tests/end_to_end/test_study.py."""
    (site.folder / "bin" / "glioma-dist").write_text(PART_OF_A_STUDY)
    path = f"{site.folder / 'bin'}:{site.cluster.environment['PATH']}"
    size = ("--array=4-6", "--gpus-per-task=1", "--cpus-per-task=1", "--output=job.out")
    script = str(JOB.with_name("slurm_array.sbatch"))
    job = site.cluster.submit(site.folder, *size, script, "table3", "--out", "studies/x", PATH=path)
    said = {number: site.folder / f"said-{number}" for number in (1, 2, 3)}
    until = time.monotonic() + 300
    while site.cluster.ask("squeue", "--noheader") and time.monotonic() < until:
        time.sleep(0.5)
    for number, lines in {1: 2, 2: 2, 3: 1}.items():
        expected = f"reproduce table3 --task {number - 1} --num-tasks 3 --out studies/x"
        assert said[number].read_text().splitlines() == [expected] * lines, site.said()
    ends = re.findall(r"JobState=(\w+).*?ExitCode=(\S+)", site.cluster.ask("scontrol", "show", "job", job), re.DOTALL)
    assert sorted(ends) == [("COMPLETED", "0:0"), ("COMPLETED", "0:0"), ("FAILED", "2:0")]
