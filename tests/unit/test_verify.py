"""`glioma-dist verify`: a run's stretches computed again, and what is named where something was changed."""

import json
from dataclasses import replace

import pytest
from helpers import rows, tiny_config

from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.training import loop
from glioma_dist.training.step_hashes import read_noted

SMALL = {"decoder_channels": (2, 2, 2, 2, 2), "max_steps": 6, "eval_every": 3, "keep_every": 2}


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, runtime):
    """A run of six steps that keeps every second."""
    config = tiny_config(shards, tmp_path_factory.mktemp("whole") / "run", **SMALL)
    loop.train(config, runtime)
    return config


def test_a_run_keeps_checkpoints_and_notes_each_step(whole):
    noted = read_noted(whole.out)
    assert sorted(noted.steps) == [1, 2, 3, 4, 5, 6]
    assert noted.stretches() == [(0, 2), (2, 4), (4, 6)]
    assert len({row["batch"] for row in noted.steps.values()}) == 6
    told = [row["loss"] for row in rows(whole.out) if "split" not in row]
    assert told == [noted.steps[step]["loss"] for step in range(1, 7)]
    for step, identity in noted.kept.items():
        checkpoint = Checkpoint.read(whole.out / "steps" / f"{step:06d}")
        checkpoint.check()
        assert (checkpoint.step, checkpoint.manifest.identity) == (step, identity)
