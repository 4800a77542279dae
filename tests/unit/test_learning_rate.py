"""The learning rate of each step equals that of PyTorch's and transformers' schedulers, in fp64."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

from glioma_dist.config import DataConfig, TrainConfig
from glioma_dist.config.recipe import LrSchedule, schedule_steps
from glioma_dist.errors import InputError
from glioma_dist.training.learning_rate import LearningRate

LR, STEPS, WARMUP, MIN = 0.03, 40, 7, 0.01


def rates_of(make_scheduler: Callable, num_steps: int = STEPS, skipped: int = 0) -> list[float]:
    """Rates of steps, from another library's scheduler; the first `skipped` are left out."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(num_steps + skipped):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates[skipped:]


def ours(num_steps: int = STEPS, **fields) -> list[float]:
    rate = LearningRate(LR, **{"num_steps": STEPS, **fields})
    return [rate.at(step) for step in range(num_steps)]


COSINE = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS, eta_min=LR * MIN)
HF_COSINE = partial(
    get_cosine_with_min_lr_schedule_with_warmup,
    num_warmup_steps=WARMUP + 1,
    num_training_steps=STEPS + 1,
    min_lr_rate=MIN,
)
HF_POLY = partial(
    get_polynomial_decay_schedule_with_warmup,
    num_warmup_steps=WARMUP + 1,
    num_training_steps=STEPS + 1,
    lr_end=LR * MIN,
    power=0.9,
)
"""transformers begins with a step at rate 0, which is left out: so its warm-up and its horizon are one step longer."""
ONE_CYCLE = partial(
    torch.optim.lr_scheduler.OneCycleLR,
    max_lr=LR,
    total_steps=STEPS + 1,
    pct_start=(WARMUP + 1) / (STEPS + 1),
    div_factor=25,
    final_div_factor=1 / (25 * MIN),
    cycle_momentum=False,
)
"""PyTorch takes its lowest rate in the last step, and this package after it, as with cosine: one step more."""


@pytest.mark.parametrize(
    ("fields", "theirs", "skipped"),
    [
        ({"schedule": "cosine", "min_factor": MIN}, COSINE, 0),
        ({"schedule": "cosine", "min_factor": MIN, "warmup_steps": WARMUP}, HF_COSINE, 1),
        ({"schedule": "poly"}, partial(torch.optim.lr_scheduler.PolynomialLR, total_iters=STEPS, power=0.9), 0),
        (
            {"schedule": "poly", "poly_power": 1.0},
            partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=1e-30, total_iters=STEPS),
            0,
        ),
        ({"schedule": "poly", "min_factor": MIN, "warmup_steps": WARMUP}, HF_POLY, 1),
        ({"schedule": "one-cycle", "min_factor": MIN, "warmup_steps": WARMUP}, ONE_CYCLE, 0),
        (
            {"schedule": "constant", "warmup_steps": WARMUP},
            partial(get_constant_schedule_with_warmup, num_warmup_steps=WARMUP + 1),
            1,
        ),
        ({"schedule": "constant"}, partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0), 0),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_each_step_has_the_rate_of_another_library_s_scheduler(fields, theirs, skipped):
    assert ours(**fields) == pytest.approx(rates_of(theirs, skipped=skipped), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("schedule", get_args(LrSchedule))
@pytest.mark.parametrize("warmup", [0, 1, WARMUP, STEPS - 1])
def test_every_schedule_rises_falls_and_ends_above_zero_within_the_run(schedule, warmup):
    rates = ours(schedule=schedule, warmup_steps=warmup)
    assert all(0 < each <= LR for each in rates)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup] == max(rates) == LR
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_after_its_end_a_schedule_stays_at_its_lowest_rate():
    rate = LearningRate(LR, "cosine", 0, STEPS, MIN)
    assert [rate.at(step) for step in (STEPS, STEPS + 1, 10**6)] == [LR * MIN] * 3


def test_by_default_the_rate_is_the_flag_to_the_last_bit():
    rate = LearningRate.of(TrainConfig(lr=1 / 3), 100)
    assert rate.is_constant
    assert {rate.at(step) for step in range(200)} == {1 / 3}


def test_one_cycle_rises_over_30_percent_of_its_steps_by_default():
    assert LearningRate.of(TrainConfig(lr_schedule="one-cycle"), 100).warmup_steps == 30
    assert LearningRate.of(TrainConfig(lr_schedule="one-cycle"), 1).at(0) == TrainConfig.lr
    assert LearningRate.of(TrainConfig(lr_schedule="cosine"), 100).warmup_steps == 0


def test_the_steps_of_a_schedule_are_those_of_the_run_or_the_flag():
    cosine = TrainConfig(lr_schedule="cosine")
    assert schedule_steps(TrainConfig(), 100) is None
    assert schedule_steps(cosine, 100) == 100
    assert schedule_steps(replace(cosine, schedule_steps=300), 100) == 300
    assert schedule_steps(replace(cosine, schedule_steps=60, min_lr_factor=0.1), 100) == 60


@pytest.mark.parametrize(
    ("fields", "num_steps", "message"),
    [
        ({"schedule_steps": 60}, 100, r"--schedule-steps 60: the learning rate would be 0 .*--max-steps 60"),
        ({"warmup_steps": 100}, 100, r"--warmup-steps 100: as long as the whole schedule \(100 steps\)"),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_refused(fields, num_steps, message):
    with pytest.raises(InputError, match=message):
        LearningRate.of(TrainConfig(lr_schedule="cosine", **fields), num_steps)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": 1.0}, "--momentum 1.0: give a number from 0"),
        ({"momentum": float("nan")}, "--momentum nan"),
        ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, "--nesterov needs momentum"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1"),
        ({"weight_decay": float("inf")}, "--weight-decay inf"),
        ({"min_lr_factor": 1.0}, "--min-lr-factor 1.0"),
        ({"poly_power": 0.0}, "--poly-power 0.0"),
        ({"warmup_steps": -1}, "--warmup-steps -1"),
        ({"schedule_steps": 0}, "--schedule-steps 0"),
        ({"lr_schedule": "poly", "warmup_steps": 9, "schedule_steps": 9}, "give fewer than 9"),
        ({"encoder_lr_factor": 0.0}, "--encoder-lr-factor 0.0.*--freeze-encoder"),
        ({"freeze_encoder": True}, "--freeze-encoder: the encoder would keep random weights"),
        ({"lr": 0.0}, "--lr 0.0"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(fields, message):
    config = TrainConfig(data=DataConfig(train=("shards/x",)), **fields)
    with pytest.raises(InputError, match=message) as error:
        config.validate()
    assert len(str(error.value)) <= 500


def test_flags_without_an_effect_are_named():
    given = TrainConfig(
        momentum=0.5, nesterov=True, schedule_steps=9, min_lr_factor=0.1, poly_power=1.0, encoder_lr_factor=0.1
    )
    told = [each.split(" ")[0] for each in replace(given, freeze_encoder=True).without_effect()]
    names = ("momentum", "nesterov", "schedule-steps", "min-lr-factor", "poly-power", "encoder-lr-factor")
    assert told == [f"--{name}" for name in names]
    assert replace(given, optimizer="sgd", lr_schedule="poly").without_effect() == []
    assert TrainConfig().without_effect() == []
