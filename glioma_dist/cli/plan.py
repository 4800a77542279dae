"""`glioma-dist plan`: estimate the memory of a training step without a GPU."""

from __future__ import annotations

import gc

from glioma_dist.cli.command import Command
from glioma_dist.config.plan import PlanConfig


def run(config: PlanConfig) -> None:
    """Print the estimates."""
    was_enabled = gc.isenabled()
    gc.disable()  # a twelfth of the time; reference counts free all that a counted step makes
    try:
        from glioma_dist.benchmark.memory_plan import print_plan

        print_plan(config)
    finally:
        if was_enabled:
            gc.enable()


PLAN = Command(
    PlanConfig,
    run,
    (
        "glioma-dist plan --size 704x512 1472x1120 2592x1952",
        "glioma-dist plan --model.encoder mit_b3 --size 2592x1952 --gpu-memory 24GiB",
        "glioma-dist plan --size 2592x1952 --gpus 4 --batch-size 2 --gpu-memory 8GiB --json plan.json",
    ),
)
