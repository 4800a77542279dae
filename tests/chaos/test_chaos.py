"""Random faults: what the harness draws and notices, and six faults of six kinds."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import chaos_campaign
import chaos_command
import chaos_table
import numpy as np
import pytest
from chaos_checks import effective, faults_of_order, faults_of_run, segments
from chaos_plan import AGENT, KINDS, LAUNCHERS, MOMENTS, PROCESSES, by_agent, draw
from chaos_recording import Delivered
from chaos_starts import BATCH, IMAGES, STEPS
from helpers import REPOSITORY
from safetensors.numpy import load_file, save_file

from glioma_dist.benchmark.rows import results_folder
from glioma_dist.distributed import environment
from glioma_dist.errors import InputError

SEED_OF_CI = 37
SECONDS = 800


def test_the_same_seed_draws_the_same_faults_and_another_others():
    assert draw(3, 50) == draw(3, 50)
    assert draw(3, 50) != draw(4, 50)


@pytest.mark.parametrize("seed", range(20))
def test_six_faults_are_of_six_kinds_and_the_last_changes_the_number_of_processes(seed):
    faults = draw(seed, 6)
    assert {fault.kind for fault in faults} == set(KINDS)
    assert faults[5].processes != faults[4].processes


def test_fifty_faults_have_every_variant_moment_launcher_and_number_of_processes():
    faults = draw(1, 50)  # those of docs/reliability.md
    assert [fault.number for fault in faults] == list(range(1, 51))
    assert {(fault.kind, fault.variant) for fault in faults} == {(kind, each) for kind in KINDS for each in KINDS[kind]}
    assert {fault.moment for fault in faults} == set(MOMENTS)
    assert {fault.launcher for fault in faults} == {None, *LAUNCHERS}
    assert {fault.processes for fault in faults} == set(PROCESSES)
    assert {fault.processes for fault in faults[:30]} == {2}


@pytest.mark.parametrize("seed", range(20))
def test_the_agent_gets_no_signal_while_it_starts_its_processes(seed):
    found = [by_agent(fault) for fault in draw(seed, 50) if fault.kind == "launcher"]
    assert {fault.moment for fault in found} == {"step"}
    assert not [fault for fault in draw(seed, 50) if fault.launcher == AGENT and by_agent(fault) != fault]


def deliver(start: int, steps: range, processes: int) -> list[Delivered]:
    """What a start delivers: every two steps are an epoch of all images."""
    share = BATCH // processes
    images = [(f"image-{number}", number) for number in range(IMAGES)]
    return [
        Delivered(
            start,
            step,
            rank,
            processes,
            0.0,
            tuple(images[(step - 1) % 2 * BATCH :][rank * share : (rank + 1) * share]),
        )
        for rank in range(processes)
        for step in steps
    ]


UNDISTURBED = deliver(1, range(1, STEPS + 1), 2)


def test_steps_taken_again_and_by_other_numbers_of_processes_are_in_order():
    records = deliver(1, range(1, 9), 2) + deliver(2, range(5, 12), 3) + deliver(3, range(11, STEPS + 1), 1)
    assert faults_of_order(records, UNDISTURBED) == []
    assert segments(records) == ((2, 4), (3, 10), (1, STEPS))
    assert {each.start for each in effective(records)[7].values()} == {2}


@pytest.mark.parametrize("fault", ["lost step", "lost sample", "doubled sample", "other pixels", "other order"])
def test_a_wrong_order_is_noticed(fault):
    records = list(UNDISTURBED)
    place = next(number for number, each in enumerate(records) if (each.step, each.rank) == (7, 1))
    samples = records[place].samples
    if fault == "lost step":
        records = [each for each in records if each.step != 7]
    changed = {
        "lost sample": samples[1:],
        "doubled sample": (samples[1], *samples[1:]),
        "other pixels": ((samples[0][0], 99), *samples[1:]),
        "other order": samples[::-1],
    }
    if fault in changed:
        records[place] = replace(records[place], samples=changed[fault])
    assert faults_of_order(records, UNDISTURBED)


def test_an_undisturbed_run_that_doubles_a_sample_is_noticed():
    """Equality alone would not notice it."""
    records = [replace(each, samples=UNDISTURBED[0].samples) for each in UNDISTURBED]
    assert any("times" in line for line in faults_of_order(records, records))


@pytest.fixture
def runs(tmp_path):
    """Two folders that hold the same run."""
    one, other = tmp_path / "one", tmp_path / "other"
    for name in ("last", "best"):
        (one / name).mkdir(parents=True)
        save_file({"weight": np.arange(8, dtype=np.float32)}, one / name / "model.safetensors")
    (one / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "images_per_second": 3.0}\n')
    (one / ".lock").touch()
    shutil.copytree(one, other)
    return one, other


def flip_last_bit(one: Path) -> None:
    tensors = load_file(one / "last" / "model.safetensors")
    tensors["weight"] = np.nextafter(tensors["weight"], np.float32(9))
    save_file(tensors, one / "last" / "model.safetensors")


DIFFERENCES = {
    "other bits": flip_last_bit,
    "other tensors": lambda one: (one / "best" / "model.safetensors").unlink(),
    "other rows": lambda one: (one / "metrics.jsonl").write_text('{"step": 1, "loss": 0.25}\n'),
    "temporary names": lambda one: (one / ".status.json.x.partial").touch(),
    "temporary names: ['last/": lambda one: (one / "last" / "state.json.new").touch(),
    "other names": lambda one: (one / "core").touch(),
}


@pytest.mark.parametrize("words", DIFFERENCES)
def test_a_run_that_differs_is_noticed(runs, words):
    one, other = runs
    assert faults_of_run(one, other, has_changed=False) == []
    DIFFERENCES[words](one)
    assert any(line.startswith(words) for line in faults_of_run(one, other, has_changed=False))


@pytest.mark.timeout(SECONDS)
def test_six_faults_of_six_kinds_leave_a_run_as_if_nothing_had_happened(tmp_path):
    command = [sys.executable, "benchmarks/chaos.py", "--faults", "6", "--seed", str(SEED_OF_CI), "--forked-launchers"]
    limits = ["--seconds-to-end", "200", "--seconds-to-restart", "200"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "c"), *limits],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    content = json.loads((tmp_path / "c" / "chaos.json").read_text())
    assert len(content["faults"]) == 6
    assert all(not each["wrong"] for each in content["faults"] + content["runs"])
    assert any(len(run["segments"]) > 1 for run in content["runs"])


@pytest.fixture
def config(tmp_path):
    flags = {"faults": 6, "seed": 1, "only": None, "forked_launchers": True, "seconds_to_end": 9.0}
    return SimpleNamespace(out=tmp_path, seconds_to_restart=9.0, **flags)


def test_a_campaign_is_continued_with_its_own_flags_and_commit_only(config, monkeypatch):
    """A part of the launchers' faults are others with --forked-launchers, also of the same seed."""
    monkeypatch.setattr(chaos_command, "find_commit", lambda _: "abcdef0")
    known = {"seed": 1, "count": 6, "forked_launchers": True, "commit": "abcdef0", "faults": [{}]}
    (config.out / "chaos.json").write_text(json.dumps(known))
    assert chaos_command._read_done(config) == known
    for change, words in (
        ({"forked_launchers": False}, "--forked-launchers to continue"),
        ({"commit": "1234567"}, "its faults are of commit 1234567, and now it is abcdef0"),
    ):
        (config.out / "chaos.json").write_text(json.dumps(known | change))
        with pytest.raises(InputError, match=words):
            chaos_command._read_done(config)


def test_a_second_campaign_in_the_same_folder_is_refused(config):
    """It would continue the first one's, and end the processes of its runs."""
    with results_folder(config.out):
        assert chaos_command._read_done(config) is None, "a lock alone is no campaign"
        ended = subprocess.run(
            [sys.executable, REPOSITORY / "benchmarks/chaos.py", "--out", config.out],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    assert ended.returncode == 2, ended.stderr
    assert "another benchmark is writing there" in ended.stderr
    assert [each.name for each in config.out.iterdir()] == [".lock"]


def test_a_campaign_notes_the_commit_as_runs_and_benchmarks_do():
    """Without changes in docs: a page that changed meanwhile is no reason not to continue a campaign."""
    assert chaos_campaign.find_commit is chaos_command.find_commit is environment.find_commit


def test_what_a_killed_campaign_left_of_its_run_is_replaced(config):
    """Without a disk of its own: a mounted one is gone with the campaign."""
    disk = SimpleNamespace(folder=config.out / "disk", is_mounted=False)
    place = SimpleNamespace(records=config.out / "records")
    kept = config.out / "before" / "2"
    for folder, text in ((disk.folder / "run", "after the fault"), (kept / "run", "before it")):
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(text)
    (kept / "state.json").write_text('{"start": 1, "first": 1, "processes": 2, "faults": [1]}')
    campaign = chaos_campaign.Campaign(config, place, None, disk)
    campaign.return_to(kept)
    assert (disk.folder / "run" / "metrics.jsonl").read_text() == "before it"
    told = chaos_table.summary(campaign.content())
    assert "--faults 6 --seed 1 --forked-launchers --out FOLDER" in told
