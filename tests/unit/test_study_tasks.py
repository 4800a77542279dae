"""A study that several tasks share: no run is made twice, and what is missing is said."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from glioma_dist.config.reproduction import ReproduceConfig
from glioma_dist.errors import InputError
from glioma_dist.reproduction.execute import describe_missing, execute, failure, is_finished, write_config
from glioma_dist.reproduction.folder import held_run
from glioma_dist.reproduction.plan import Settings, make_plan, share
from glioma_dist.reproduction.presets import PRESETS
from glioma_dist.reproduction.protocol import table3

SECONDS = 60


@pytest.fixture
def jobs(tmp_path):
    """Two pretrainings, and what needs them, of table 3."""
    settings = Settings(replace(PRESETS["small"], num_repetitions=1), Path("livecell"), tmp_path)
    return make_plan(table3(False), settings, (10, 5)).jobs


def test_two_starts_at_once_make_each_run_once(jobs):
    made, at_work, may_end = [], threading.Event(), threading.Event()
    slow = next(job for job in jobs if any(job.folder in other.needs for other in jobs) and not job.needs)

    def launch(script: str, config: Path, log: Path) -> int:
        made.append(config)
        if config == slow.config_file:
            at_work.set()
            assert may_end.wait(SECONDS)
        return 0

    results, lines = [], []
    ordered = (slow, *(job for job in jobs if job is not slow))
    first = threading.Thread(target=lambda: results.append(execute(ordered, launch, {}, lambda _: None)))
    first.start()
    assert at_work.wait(SECONDS)
    assert execute(ordered, launch, {}, lines.append) == [], "what another start makes has not failed"
    assert f"run 1 of {len(jobs)}: another start of this study is making {slow.folder}" in lines
    needing = [job for job in jobs if slow.folder in job.needs]
    assert not any(is_finished(job) or failure(job) for job in (slow, *needing))
    assert f"{1 + len(needing)} of {len(jobs)} runs are not finished: " in describe_missing(jobs)
    may_end.set()
    first.join(SECONDS)
    assert results == [[]]
    assert describe_missing(jobs) is None
    assert sorted(made) == sorted(job.config_file for job in jobs)


def test_a_run_that_another_start_has_just_finished_is_not_made_again(jobs):
    job = jobs[0]

    def finish(line: str) -> None:
        pytest.fail(line)

    with held_run(job.folder) as is_ours:
        assert is_ours
        with held_run(job.folder) as again:
            assert not again
        job.marker.write_text(json.dumps({"seconds": 1.0}))
    assert execute([job], lambda *_: pytest.fail("it is finished"), {}, finish) == []


def test_a_training_of_an_older_version_resumes_with_the_defaults_of_what_is_new(jobs):
    job = jobs[0]
    job.folder.mkdir(parents=True)
    write_config(job)
    before = json.loads(job.config_file.read_text())
    del before["target_weight"], before["model"]["encoder_norm"]
    job.config_file.write_text(json.dumps(before))
    write_config(job)
    assert json.loads(job.config_file.read_text()) == job.config
    for wrong, words in (
        (before | {"lr": 1.0}, r"other settings than this command has \(lr 1\.0 -> "),
        ([], "expected an object of settings, found list; remove the folder"),
        ({"fit": "crop"}, "the setting fit belongs to an older version"),
    ):
        job.config_file.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=words):
            write_config(job)


def test_the_tasks_of_an_array_make_the_whole_study(jobs):
    costs = {job.config_file: 1.0 for job in jobs}
    made = []

    def launch(script: str, config: Path, log: Path) -> int:
        made.append(config)
        return 0

    for task in (2, 0, 1):
        assert describe_missing(jobs) is not None
        own = share(jobs, costs, task, 3)
        assert execute(own, launch, {}, lambda _: None) == []
    assert describe_missing(jobs) is None
    assert sorted(made) == sorted(job.config_file for job in jobs)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"task": 3, "num_tasks": 3}, "--task 3 of --num-tasks 3: give 0 to 2"),
        ({"task": -1, "num_tasks": 3}, "--task -1 of --num-tasks 3: give 0 to 2"),
        ({"task": 1}, "--task 1 of --num-tasks 1: give it together with --num-tasks"),
        ({"num_tasks": 0}, "--num-tasks 0: give 1 to 1000"),
    ],
)
def test_a_task_that_cannot_be_is_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        ReproduceConfig("table3", **wrong).validate()
