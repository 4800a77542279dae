"""Training with --scale.memory-budget: the same losses, the same bits after a stop, and what the run's files tell."""

import json

import pytest
from helpers import rows, tiny_config

from glioma_dist.config import ScaleConfig
from glioma_dist.errors import InputError
from glioma_dist.scale.checkpoint_plan import LEVEL_PLANS, CheckpointPlan
from glioma_dist.scale.memory_budget import choose_plan
from glioma_dist.scale.planner import count
from glioma_dist.training import loop, memory
from glioma_dist.training.memory import step_of

WITHOUT_VALIDATION = {"val": None, "eval_every": None}


def budget_between(config, runtime) -> ScaleConfig:
    """Half-way between the peaks of the levels none and full."""
    step = step_of(config, runtime)
    peaks = [count(step, LEVEL_PLANS[level]).peak for level in ("none", "full")]
    return ScaleConfig(memory_budget=f"{sum(peaks) / 2 / 2**20:.3f}MiB")


def plan_of(out) -> str:
    return json.loads((out / "run.json").read_text())["starts"][-1]["scale"]["activation_checkpointing"]


def test_a_run_with_a_budget_has_the_same_losses_and_resumes_bit_for_bit(shards, tmp_path, runtime, capsys):
    plain = tiny_config(shards, tmp_path / "plain", **WITHOUT_VALIDATION)
    scale = budget_between(plain, runtime)
    loop.train(plain, runtime)
    whole, stopped = (
        tiny_config(shards, tmp_path / name, scale=scale, **WITHOUT_VALIDATION) for name in ("whole", "stopped")
    )
    loop.train(whole, runtime)
    loop.train(tiny_config(shards, stopped.out, scale=scale, max_steps=3, **WITHOUT_VALIDATION), runtime)
    loop.train(stopped, runtime)
    assert rows(stopped.out) == rows(whole.out)
    for name in ("model", "optimizer"):
        files = [(each.out / "last" / f"{name}.safetensors").read_bytes() for each in (whole, stopped)]
        assert files[0] == files[1]
    losses = [[row["loss"] for row in rows(each.out)] for each in (plain, whole)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # the plain steps' in fp32, which Adam makes drift
    plan = CheckpointPlan.parse(plan_of(whole.out))
    assert str(plan) == plan_of(stopped.out)
    assert plan not in LEVEL_PLANS.values()
    assert plan == choose_plan(step_of(whole, runtime), whole.scale.budget_bytes).plan
    assert f"activation checkpointing {plan}, from step 0 to 6, estimated memory of a step" in capsys.readouterr().out


def test_a_reproducible_run_takes_the_plan_that_it_began_with(shards, tmp_path, runtime, monkeypatch):
    """Also where another one would be chosen now."""
    settings = {"reproducible": True, "norm": "group", **WITHOUT_VALIDATION}
    config = tiny_config(shards, tmp_path / "run", **settings)
    scale = budget_between(config, runtime)
    loop.train(tiny_config(shards, config.out, scale=scale, max_steps=1, **settings), runtime)
    plan = plan_of(config.out)
    monkeypatch.setattr(memory, "choose_plan", None)
    loop.train(tiny_config(shards, config.out, scale=scale, max_steps=2, **settings), runtime)
    assert plan_of(config.out) == plan
    assert CheckpointPlan.parse(plan) not in LEVEL_PLANS.values()


def test_a_budget_that_nothing_fits_is_one_line_with_the_least(shards, tmp_path, runtime):
    config = tiny_config(shards, tmp_path / "run", scale=ScaleConfig(memory_budget="2MB"), **WITHOUT_VALIDATION)
    with pytest.raises(InputError, match=r"--scale.memory-budget: 0.002 GiB .* give (\d+)MiB or more") as caught:
        loop.train(config, runtime)
    assert "\n" not in str(caught.value)
    least = int(str(caught.value).rpartition("give ")[2].partition("MiB")[0])
    fitting = choose_plan(step_of(config, runtime), least * 2**20)
    assert fitting.memory.peak <= least * 2**20
    with pytest.raises(InputError, match="the least that is possible"):
        choose_plan(step_of(config, runtime), (least - 1) * 2**20)
