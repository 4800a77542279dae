"""What splitting each image over several processes costs and saves: a training step measured on every process of a
launch."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from glioma_dist.benchmark.peak_memory import PeakMemory
from glioma_dist.config import ModelConfig, ScaleConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.numerics import numerics, numerics_in_force
from glioma_dist.distributed.run_command import run_command
from glioma_dist.files import write_json_atomically
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.fsdp import choose_shards
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.kernel_limits import check_kernels
from glioma_dist.scale.optimizer import make_adam
from glioma_dist.scale.scale_model import scale_model
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.step import Level, Step
from glioma_dist.scale.tile_size import tile_size
from glioma_dist.size import Size


@dataclass(frozen=True)
class SpatialParallelCell:
    """One launch: as many processes as strips, one image a step."""

    encoder: str
    size: str
    spatial_parallel: int
    level: Level
    repeats: int
    warm_up: int


def measure_spatial_parallel(cell: SpatialParallelCell, context: DistributedContext) -> dict:
    """Median seconds of a step, and peak memory of each process (`PeakMemory`). Noise stands in for images.

    Raises InputError where a GPU's kernels cannot take the maps.
    """
    group, device, size = SpatialGroup.join(context, cell.spatial_parallel), context.device, Size.parse(cell.size)
    step = Step(
        ModelConfig(encoder=cell.encoder),
        size,
        batch_size=1,
        bf16=context.accelerator.mixed_precision != "no",
        spatial_parallel=cell.spatial_parallel,
        tile_size=tile_size("auto", device),
        loss=partial(segmentation_loss, DEFAULT_LOSS),
    )
    check_kernels(step, cell.level)
    strip = group.cut(size.height)
    shape, drawn = (1, 1, size.height, size.width), torch.Generator().manual_seed(0)  # one image for all processes
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn)[:, :, strip].to(device)
    masks = (images[:, 0] > 180).to(torch.uint8)
    memory = PeakMemory(device)
    model = UNet(ModelConfig(encoder=cell.encoder))
    if context.num_processes > 1:
        model = synchronise_batch_norm(model, device)
    scale_model(model, ScaleConfig(spatial_parallel=cell.spatial_parallel), cell.level, group)
    model.to(device)
    choose_shards(model, context)
    model, optimizer = context.accelerator.prepare(model, make_adam(model))
    seconds = []
    for _ in range(cell.warm_up + cell.repeats):
        context.wait()
        start = time.perf_counter()
        compute_gradients(
            model,
            images,
            masks,
            partial(segmentation_loss, DEFAULT_LOSS, group=group),
            context.accelerator.autocast(),
            seeds=torch.zeros(1, dtype=torch.int64),
            factor=context.num_processes,
            backward=context.accelerator.backward,
        )
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    timed, peaks = seconds[cell.warm_up :], context.gather_objects([memory.allocated()])
    row = {"seconds": timed, "median_seconds": statistics.median(timed), "peak_gib": peaks}
    return {**row, "numerics": numerics_in_force()}


def main() -> None:
    """Measure the cell of the first argument, as JSON; the first process writes the row into the second's file."""
    context = DistributedContext.start()
    with numerics():
        row = measure_spatial_parallel(SpatialParallelCell(**json.loads(sys.argv[1])), context)
    if context.is_main:
        write_json_atomically(Path(sys.argv[2]), row)


if __name__ == "__main__":
    run_command(main)
