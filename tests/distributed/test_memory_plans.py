"""A plan of activation checkpointing with DDP, FSDP2 and spatial parallelism: as one process without a plan."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from engines import fsdp2
from helpers import rows, run, tiny_config
from test_processes import FP64, check_close
from test_processes import train_in_double as train_plain_in_double

from glioma_dist.config import ScaleConfig, TrainConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import MODEL
from glioma_dist.scale.checkpoint_plan import LEVEL_PLANS, CheckpointPlan, DecoderPlan
from glioma_dist.scale.planner import count
from glioma_dist.training import loop, memory, preparation

DRAWN = CheckpointPlan(
    segments=("input", "all", "attention", "input", "all"),
    layers=("tiles", "whole", "tiles", "whole"),
    decoder=tuple(
        DecoderPlan(*each.split())
        for each in ("all whole", "input tiles", "all tiles", "input whole", "all whole", "all tiles")
    ),
)
"""Neighbours differ, so that each kind of unit lies beside others."""


def train_with_a_plan(config: TrainConfig, engine: str, plan: CheckpointPlan | None) -> None:
    """Train in fp64 with `plan`, or else with the one for a budget half-way between the levels none and full."""
    here, build = DistributedContext.start(), preparation.build_model
    preparation.build_model = lambda *given: (build(*given)[0].double(), [])
    if plan is None:
        step = memory.step_of(config, here)
        budget = sum(count(step, LEVEL_PLANS[level]).peak for level in ("none", "full")) / 2
    else:
        memory._choose_plan, budget = lambda *_: plan, 2**30
    config = replace(config, scale=replace(config.scale, memory_budget=f"{budget / 2**20:.3f}MiB"))
    with fsdp2(here) if engine == "FSDP2" else nullcontext():
        loop.train(config, here)


@pytest.mark.parametrize("engine", ["DDP", "FSDP2", "spatial"])
@pytest.mark.parametrize(
    ("encoder", "plan"),
    [
        pytest.param("mit_tiny", None, id="mit_tiny, of a budget"),
        pytest.param("mit_tiny", DRAWN, id="mit_tiny, drawn"),
        pytest.param("mobilenet_v2", DRAWN, id="mobilenet_v2, drawn"),
    ],
)
def test_two_processes_with_a_plan_equal_one_without(shards, tmp_path, encoder, plan, engine):
    fields = {"encoder": encoder, "max_steps": 2, "val": None, "eval_every": None, "clip_norm": 0.5}
    plain = tiny_config(shards, tmp_path / "plain", **fields)
    train_plain_in_double(plain)
    scale = ScaleConfig(spatial_parallel=2 if engine == "spatial" else 1)
    ours = replace(plain, out=tmp_path / "ours", scale=scale)
    run(train_with_a_plan, ours, engine, plan, num_processes=2)
    recorded = json.loads((ours.out / "run.json").read_text())["starts"][-1]["scale"]["activation_checkpointing"]
    taken = CheckpointPlan.parse(recorded)
    assert taken == plan or (plan is None and taken not in LEVEL_PLANS.values())
    check_close(rows(ours.out), rows(plain.out), FP64)
    found, expected = (Checkpoint.read(each.out / "last").tensors(MODEL) for each in (ours, plain))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=FP64, atol=FP64, msg=lambda text, key=key: f"{key} {text}")
