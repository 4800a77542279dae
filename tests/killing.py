"""Trainings that are killed at a step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from helpers import start

from glioma_dist.config import TrainConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.training import loop


def kill_at(step: int, *configs: TrainConfig, num_processes: int = 1) -> None:
    """Train, one run after another; all processes of the last one are killed before its step number `step`, which
    counts from 0."""
    ended = start(_train, step, *configs, num_processes=num_processes).wait()
    told = "\n".join(each.stderr[-3000:] for each in ended)
    assert [each.exit_code for each in ended] == [-signal.SIGKILL] * num_processes, told


def _train(step: int, *configs: TrainConfig) -> None:
    here, take = DistributedContext.start(), loop.train_step

    def killed(trainer, batch, number):
        if number == step and trainer.config.out == configs[-1].out:
            _wait_for_all(configs[-1].out.with_name("to_be_killed"), here)
            os.kill(os.getpid(), signal.SIGKILL)
        return take(trainer, batch, number)

    loop.train_step = killed
    for config in configs:
        loop.train(config, here)


def _wait_for_all(folder: Path, here: DistributedContext) -> None:
    """Until all processes are here, by files: one that still communicated would notice that another is gone, and save
    what it can."""
    folder.mkdir(exist_ok=True)
    (folder / str(here.rank)).touch()
    while len(list(folder.iterdir())) < here.num_processes:
        time.sleep(0.01)
