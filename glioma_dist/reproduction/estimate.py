"""What runs will cost, before any data is at hand: operations counted, divided by an assumed speed."""

from __future__ import annotations

from glioma_dist.config import ModelConfig
from glioma_dist.reproduction.plan import Job
from glioma_dist.scale.operations import forward_operations

SECONDS_TO_START = 30.0
"""A process, its libraries, its first step."""


def hours(job: Job, operations_per_second: float) -> float:
    """At most, for early stopping ends many runs before; recomputation and reading the data are not in it."""
    operations = sum(
        num_images * num_passes * forward_operations(ModelConfig(encoder=job.encoder), size)
        for num_images, num_passes, size in job.num_passes
    )
    return (operations / operations_per_second + SECONDS_TO_START) / 3600
