"""Measures how much of the communication of a training step runs while the process computes, from a trace.

    torchrun --nproc-per-node 2 benchmarks/overlap.py --encoder mit_b0 --size 512x512

Works on CPUs over gloo, which communicates in threads of its own. It does not read the streams of a GPU's trace.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch.profiler import ProfilerActivity, profile

from glioma_dist.cli.arguments import parse
from glioma_dist.config import ModelConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import run_command
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import build_model
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.buckets import fix_buckets
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially
from glioma_dist.size import Size, SizeFlag

Interval = tuple[float, float]
"""Start and end in microseconds."""


@dataclass(frozen=True)
class OverlapConfig:
    """Print a Markdown table with the time of each kind of communication of one step, and the part of this time in
    which the process computed."""

    encoder: str = "mit_b0"
    """The U-Net's encoder. The decoder has group norms, so that all processes add up gradients only."""
    size: SizeFlag = field(default_factory=lambda: Size(256, 256))
    """Image size."""
    spatial_parallel: int = 1
    """Number of processes that share each image."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Level of activation checkpointing."""

    def validate(self) -> None:
        ModelConfig(encoder=self.encoder, norm="group").validate()


@dataclass(frozen=True)
class Overlap:
    """One kind of communication of a step."""

    number: int
    milliseconds: float
    """Total time from start to end of each communication."""
    computing: float
    """Part of this time in which the process computed, in milliseconds."""


def measure(config: OverlapConfig, here: DistributedContext) -> dict[str, Overlap]:
    """The overlap of a step after the first, by the name of the communication."""
    group = SpatialGroup.join(here, config.spatial_parallel)
    model = build_model(ModelConfig(encoder=config.encoder, norm="group"), 0)[0]
    model = synchronise_batch_norm(model, here.device)
    checkpoint_activations(model, config.activation_checkpointing)
    split_spatially(model, group)
    model = here.accelerator.prepare(model)
    fix_buckets(model)
    rows = group.cut(config.size.height)
    images = torch.zeros(1, 1, rows.stop - rows.start, config.size.width, dtype=torch.uint8)

    def take_step() -> None:
        compute_gradients(
            model,
            images,
            images[:, 0],
            partial(segmentation_loss, "dice", group=group),
            here.accelerator.autocast,
            seeds=torch.zeros(1, dtype=torch.int64),
        )

    take_step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        take_step()
    events = [(event.name, (event.time_range.start, event.time_range.end)) for event in seen.events()]
    computing = union(when for name, when in events if name.startswith("aten::"))
    kinds = sorted({name for name, _ in events if name.startswith("gloo:")})
    return {kind: overlap([when for name, when in events if name == kind], computing) for kind in kinds}


def overlap(communications: list[Interval], computing: list[Interval]) -> Overlap:
    """computing: intervals in order that do not touch each other."""
    total = sum(end - start for start, end in communications)
    common = sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end in communications
        for other_start, other_end in computing
    )
    return Overlap(len(communications), total / 1000, common / 1000)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as intervals in order that do not touch each other."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def simulate(config: OverlapConfig) -> None:
    here = DistributedContext.start()
    found = measure(config, here)
    if here.is_main:
        print("| Communication | Number | In flight (ms) | While computing (ms) | Share |\n|---|---|---|---|---|")
        for name, each in found.items():
            share = each.computing / each.milliseconds
            print(f"| {name} | {each.number} | {each.milliseconds:.1f} | {each.computing:.1f} | {share:.0%} |")


if __name__ == "__main__":
    run_command(lambda: simulate(parse(OverlapConfig)))
