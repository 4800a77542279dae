"""How much of the communication of a training step runs while the process computes, from a trace of the step.

    torchrun --nproc-per-node 2 benchmarks/overlap.py --encoder mit_b0 --size 512x512

On CPUs, over gloo, which communicates in threads of its own. A GPU's trace has its kernels on streams instead.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
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
"""Begin and end, microseconds."""


@dataclass(frozen=True)
class OverlapConfig:
    """Prints a Markdown table: for each kind of communication of one step, how long it took, and for how much of that
    the process computed."""

    encoder: str = "mit_b0"
    """Its norm is a group norm, so that only gradients are added over all processes."""
    size: SizeFlag = field(default_factory=lambda: Size(256, 256))
    spatial_parallel: int = 1
    """Processes that share each image."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"

    def validate(self) -> None:
        ModelConfig(encoder=self.encoder, norm="group").validate()


@dataclass(frozen=True)
class Overlap:
    """One kind of communication of a step."""

    number: int
    milliseconds: float
    """In flight, all together."""
    computing: float
    """Of these, in which the process computed."""


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
            lambda logits, masks: segmentation_loss("dice", logits, masks, group.total),
            here.accelerator.autocast(),
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
    """computing: in order, none of which touches another."""
    total = sum(end - start for start, end in communications)
    common = sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end in communications
        for other_start, other_end in computing
    )
    return Overlap(len(communications), total / 1000, common / 1000)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times, in order, as intervals of which none touches another."""
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
