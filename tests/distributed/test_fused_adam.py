"""Fused optimizers, which training takes on GPUs, are those of CPUs, too: the same runs, under every engine.

On a CPU training itself does not take it, so each process here is told to.
"""

from dataclasses import replace

import pytest
from helpers import rows, run, start_fp16, tiny_config
from test_fsdp import check_losses
from test_fsdp import train_in_double as train_with_fsdp2
from test_processes import train_in_double as train_with_ddp

from glioma_dist.config import ScaleConfig
from glioma_dist.scale import optimizer
from glioma_dist.size import Size
from glioma_dist.training import loop


def train_in_fp16(config) -> list[int]:
    """Returns the number of each step that was tried."""
    tried, step = [], loop.train_step

    def noting(training, batch, number):
        tried.append(number)
        return step(training, batch, number)

    loop.train_step = noting
    loop.train(config, start_fp16())
    return tried


def fused(train, config):
    """What `train(config)` returns, with the optimizer of a GPU."""
    optimizer._all_on_gpus = lambda groups: True
    return train(config)


@pytest.mark.parametrize(
    ("train", "layout"),
    [
        pytest.param(train_with_ddp, "on", id="DDP-channels_last"),
        pytest.param(train_with_ddp, "off", id="DDP-contiguous"),
        pytest.param(train_with_fsdp2, "on", id="FSDP2-channels_last"),
        # Weights are contiguous there in the case before, too.
        pytest.param(train_with_fsdp2, "off", id="FSDP2-contiguous", marks=pytest.mark.slow),
    ],
)
def test_a_run_moves_between_the_optimizers_of_gpus_and_cpus(shards, tmp_path, train, layout):
    """In both layouts: fused kernels go through a weight, its gradient and its moments in the order of memory, and
    FSDP2 takes contiguous weights only."""
    config = tiny_config(shards, tmp_path / "plain", max_steps=6, clip_norm=0.5)
    train_with_ddp(config)
    moving = replace(config, out=tmp_path / "moving", scale=ScaleConfig(channels_last=layout))
    train_with_ddp(replace(moving, max_steps=2))
    run(fused, train, replace(moving, max_steps=4), num_processes=2)
    train_with_ddp(moving)
    ours, plain = ([row for row in rows(each.out) if "split" not in row] for each in (moving, config))
    check_losses(ours, plain, 1e-9)


SGD = {"optimizer": "sgd", "lr": 0.01}


@pytest.mark.parametrize(
    ("num_processes", "recipe"),
    [
        (1, {}),
        (2, {}),
        (1, {"optimizer": "adamw", "weight_decay": 0.1}),
        (1, {**SGD, "momentum": 0.0}),
        (1, {**SGD, "momentum": 0.9}),
    ],
    ids=["1", "2", "adamw", "sgd", "sgd with momentum"],
)
def test_fp16_overflow_is_known_where_the_optimizer_skips_steps_itself(shards, tmp_path, num_processes, recipe):
    """accelerate takes such a step for done. With momentum, PyTorch's fused SGD would begin with a buffer that its
    skipped first step has not filled."""
    config = tiny_config(shards, tmp_path / "plain", size=Size(32, 32), **recipe)  # CPUs are slow in fp16
    tried = run(train_in_fp16, config, num_processes=num_processes)
    ours = replace(config, out=tmp_path / "fused")
    assert run(fused, train_in_fp16, ours, num_processes=num_processes) == tried
    assert tried[0].count(0) > 1, "the first loss scale overflows"
    check_losses(rows(ours.out), rows(config.out), 1e-3)
