"""run.json: what it says of each start, and that nothing of a run depends on it."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import draw_shards, rows, tiny_config

from glioma_dist.distributed.environment import find_driver, find_own_commit, versions
from glioma_dist.errors import InputError, StopRequested
from glioma_dist.training.loop import train
from glioma_dist.training.run_record import DAMAGED, RUN, RunRecord

DAMAGES = {
    "no JSON": b"{",
    "empty": b"",
    "no UTF-8": b"\xff\xfe\x00",
    "another document": b"[]",
    "no list": b'{"starts": 3}',
    "a list of others": b'{"starts": [1]}',
    "nested too deeply": b'{"starts": ' + b"[" * 100_000,
    "zeros": bytes(1000),
}


def starts(out: Path) -> list[dict]:
    return json.loads((out / RUN).read_text())["starts"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two starts."""
    folder = tmp_path_factory.mktemp("record")
    draw_shards(folder / "train", range(6))
    config = tiny_config(folder, folder / "run", val=None, eval_every=None, max_steps=1, save_every=1)
    train(config)
    train(replace(config, max_steps=2, deterministic=True))
    train(replace(config, max_steps=2))  # is over: no start
    return config


def test_each_start_is_told(finished):
    first, second = starts(finished.out)
    assert (first["from_step"], first["to_step"], first["code"], first["reason"]) == (0, 1, 0, None)
    assert (second["from_step"], second["to_step"]) == (1, 2)
    assert first["started"] <= first["ended"] <= second["started"] <= second["ended"]
    assert first["versions"]["torch"] == torch.__version__
    assert first["versions"] == versions()
    assert first["commit"] == find_own_commit()
    assert first["host"] == first["processes"][0]["host"] == socket.gethostname()
    assert first["processes"][0]["device"]
    assert first["scale"]["activation_checkpointing"] == "none"
    assert first["scale"]["channels_last"] == "off"  # auto, resolved
    assert [each["numerics"]["deterministic_algorithms"] for each in (first, second)] == [False, True]
    assert [each["deterministic"] for each in (first, second)] == [False, True]
    assert isinstance(first["command"], list)


def test_deterministic_runs_are_resumable_and_equal(finished, tmp_path):
    """On the CPU the flag changes no bit, and a run may be resumed with another value of it."""
    config = replace(finished, out=tmp_path / "run", max_steps=2, deterministic=True)
    train(config)
    assert rows(config.out) == rows(finished.out)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_list_begins_again(tmp_path, damage):
    (tmp_path / RUN).write_bytes(DAMAGES[damage])
    said = []
    RunRecord(tmp_path, {"started": "now"}, say=said.append)
    assert len(said) == 1
    assert str(tmp_path / RUN) in said[0]
    assert DAMAGED in said[0]
    assert starts(tmp_path) == [{"started": "now"}]
    assert (tmp_path / DAMAGED).read_bytes() == DAMAGES[damage]


def test_a_folder_or_a_pipe_in_its_place_is_set_aside(tmp_path):
    for make in (Path.mkdir, os.mkfifo):
        make(tmp_path / RUN)
        said = []
        RunRecord(tmp_path, {}, say=said.append)
        assert len(said) == 1
        assert starts(tmp_path) == [{}]
        (tmp_path / RUN).unlink()


def test_a_damaged_record_changes_nothing_of_a_resumed_run(finished, tmp_path, capsys):
    config = replace(finished, out=tmp_path / "run", max_steps=1)
    train(config)
    (config.out / RUN).write_text("{")
    train(replace(config, max_steps=2))
    assert rows(config.out) == rows(finished.out)
    assert f"warning: {config.out / RUN}" in capsys.readouterr().err
    assert [each["from_step"] for each in starts(config.out)] == [1]


def test_the_end_says_why(tmp_path):
    for ending, code in ((None, 0), (StopRequested("SIGTERM"), 75), (InputError("no"), 2), (ValueError("bug"), 1)):
        record = RunRecord(tmp_path, {"ended": None})
        assert starts(tmp_path)[-1] == {"ended": None}
        record.ended(ending, 7)
        last = starts(tmp_path)[-1]
        assert (last["code"], last["reason"], last["to_step"]) == (code, None if ending is None else str(ending), 7)
    assert len(starts(tmp_path)) == 4


def test_it_is_not_written_where_the_run_may_not_write(tmp_path):
    def check():
        raise InputError("the folder is gone")

    with pytest.raises(InputError, match="gone"):
        RunRecord(tmp_path, {}, check)
    assert not (tmp_path / RUN).exists()


def test_the_driver_is_read_from_the_systems_table(tmp_path):
    table = tmp_path / "version"
    texts = {
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.20  Wed Mar 19 2025\nGCC version:  12": "570.133.20",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)": "580.65.06",
        "nothing": None,
    }
    for text, expected in texts.items():
        table.write_text(text)
        assert find_driver(table) == expected
    assert find_driver(tmp_path / "missing") is None
