"""What splitting images by rows costs and saves: a training step measured on every process of a launch."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from glioma_dist.benchmark.cell import resident_gib
from glioma_dist.config import ModelConfig, ScaleConfig
from glioma_dist.distributed.context import Runtime
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet, normalise
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.fsdp import choose_shards
from glioma_dist.scale.planner import Recompute
from glioma_dist.scale.scale_model import scale_model
from glioma_dist.scale.spatial_group import Rows
from glioma_dist.size import Size


@dataclass(frozen=True)
class RowsCell:
    """One launch: as many processes as bands, one image a step."""

    encoder: str
    size: str
    rows: int
    recompute: Recompute
    repeats: int
    warm_up: int


def measure_rows(cell: RowsCell, runtime: Runtime) -> dict:
    """Median seconds of a step, and peak memory in GiB of each process: on a GPU of all that PyTorch allocates, on a
    CPU how far the process grew (None where there is no /proc). Noise stands in for images."""
    rows, device, size = Rows.join(runtime, cell.rows), runtime.device, Size.parse(cell.size)
    band = rows.cut(size.height)
    images = torch.randint(0, 256, (1, 1, size.height, size.width), dtype=torch.uint8)[:, :, band].to(device)
    masks = (images[:, 0] > 180).to(torch.uint8)
    with contextlib.suppress(OSError):  # the peak so far, that of importing, is forgotten
        Path("/proc/self/clear_refs").write_text("5")
    before = resident_gib("VmRSS")
    model = UNet(ModelConfig(encoder=cell.encoder))
    if runtime.num_processes > 1:
        model = synchronise_batch_norm(model, device)
    scale_model(model, ScaleConfig(rows=cell.rows), cell.recompute, rows)
    model.to(device)
    choose_shards(model, runtime)
    model, optimizer = runtime.accelerator.prepare(model, torch.optim.Adam(model.parameters()))
    seconds = []
    for _ in range(cell.warm_up + cell.repeats):
        runtime.wait()
        start = time.perf_counter()
        with runtime.accelerator.autocast():
            logits = model(normalise(images), torch.zeros(1, dtype=torch.int64))
        losses = segmentation_loss("dice", logits, masks, rows.total)
        runtime.accelerator.backward(losses.sum() * runtime.num_processes)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = None if before is None else resident_gib("VmHWM") - before
    timed = seconds[cell.warm_up :]
    return {"seconds": timed, "median_seconds": statistics.median(timed), "peak_gib": runtime.gather_objects([peak])}
