"""The warnings of a run are those of one process, and only the first process tells them."""

import json
from dataclasses import replace

import pytest
from helpers import draw_shards, start, tiny_config

from glioma_dist.config import ScaleConfig
from glioma_dist.training import loop, validation


def train_blind(config) -> None:
    """Train a network that finds no cell, as far as validation counts them."""
    real = validation.count_cells
    validation.count_cells = lambda predicted, reference: real(predicted & False, reference)
    try:
        loop.train(config)
    finally:
        validation.count_cells = real


def warnings_of(config, num_processes: int) -> list[dict]:
    ended = start(train_blind, config, num_processes=num_processes).wait()
    assert [end.exit_code for end in ended] == [0] * num_processes, ended[0].stderr[-3000:]
    told = json.loads((config.out / "status.json").read_text())["warnings"]
    assert sum(end.stderr.count("warning: ") for end in ended) == len(told)
    for entry in told:
        assert sum(entry["text"] in end.stderr for end in ended) == 1
    return told


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warnings")
    draw_shards(folder / "train", range(8))
    draw_shards(folder / "val", range(6, 9))  # an uneven number for two processes
    config = tiny_config(folder, folder / "alone", max_steps=4, eval_every=2)
    told = warnings_of(config, 1)
    assert [(entry["kind"], entry["step"]) for entry in told] == [("shared-images", 0), ("uniform-prediction", 4)]
    assert "2 of 3 validation images are" in told[0]["text"]
    assert "cells cover 0 % of them" in told[1]["text"]
    return config, told


@pytest.mark.parametrize("spatial_parallel", [1, 2])
def test_two_processes_warn_as_one(alone, tmp_path, spatial_parallel):
    config, told = alone
    scale = ScaleConfig(spatial_parallel=spatial_parallel)
    assert warnings_of(replace(config, out=tmp_path / "run", scale=scale), 2) == told
