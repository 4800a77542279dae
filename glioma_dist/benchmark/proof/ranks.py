"""What each process of a launch does for the checks of several GPUs: compare with the one process that it also is."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from glioma_dist.benchmark.proof.lines import Setting, worst
from glioma_dist.benchmark.proof.steps import LOSS
from glioma_dist.benchmark.proof.trainings import DECODER_CHANNELS, make_config
from glioma_dist.config import ModelConfig, ScaleConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import run_command
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.scale_model import scale_model
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.step import ON_DEVICE
from glioma_dist.training.loop import train

FAR = 1e-3
"""Below which a tensor's largest number is taken for this, where differences are measured by it."""
SECONDS_TO_ANSWER = 60.0
WIDTH, HEIGHT = 64, 160
"""Five units of 32 rows: strips of unequal height."""


def compare_engine(_: Setting, context: DistributedContext, encoders: str) -> Iterator[tuple[str, float]]:
    """DDP, each process with its image of a batch, against one process with the whole batch, in fp64."""
    count, own = context.num_processes, slice(context.rank, context.rank + 1)
    for encoder in encoders.split():
        plain, images = build_double(encoder, context.device), draw(count, context.device)
        expected = found_in(plain, take_step(plain, images, slice(None), 1))
        model = synchronise_batch_norm(build_double(encoder, context.device), context.device)
        logits = take_step(context.accelerator.prepare_model(model), images, own, count)
        yield encoder, largest_difference(found_in(model, logits), expected, own)
        context.accelerator._models.clear()
        gc.collect()  # or DDP's hooks on the parameters would stay


def compare_strips(_: Setting, context: DistributedContext, encoder: str) -> Iterator[tuple[str, float]]:
    """Each process a strip of one image, at each level, against one process with the whole image, in fp64."""
    count = context.num_processes
    plain, images = build_double(encoder, context.device), draw(1, context.device)
    expected = found_in(plain, take_step(plain, images, slice(None), 1))
    group = SpatialGroup.join(context, count)
    for level in ON_DEVICE:
        model = synchronise_batch_norm(build_double(encoder, context.device), context.device)
        scale_model(model, ScaleConfig(spatial_parallel=count), level, group)
        strip = group.cut(HEIGHT)
        logits = take_step(context.accelerator.prepare_model(model), images[:, :, strip], slice(None), count, group)
        found = found_in(model, group.gather_strip(logits))
        yield level, largest_difference(found, expected, slice(None))
        context.accelerator._models.clear()
        gc.collect()


def train_some(setting: Setting, context: DistributedContext, runs: str) -> Iterator[tuple[str, float]]:
    """Trainings of a launch, one after the other. runs: "whole 4 parts 2": names of folders, and their last steps."""
    words = runs.split()
    for name, steps in zip(words[::2], words[1::2], strict=True):
        config = make_config(setting, name, max_steps=int(steps), eval_every=100, val=None, timeout_s=SECONDS_TO_ANSWER)
        train(config, context)
        yield name, float(steps)


TASKS = {"engine": compare_engine, "strips": compare_strips, "trainings": train_some}


def build_double(encoder: str, device: torch.device) -> UNet:
    """The same weights on every process, in fp64 and training mode; images are widened on their way in."""
    model = build_model(ModelConfig(encoder=encoder, decoder_channels=DECODER_CHANNELS), 0)[0].double().to(device)
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(), *inputs[1:]))
    return model.train()


def draw(count: int, device: torch.device) -> Tensor:
    """Images (count, 1, H, W) uint8, each of another brightness and contrast."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 1, HEIGHT, WIDTH), generator=generator).float()
    strength = torch.linspace(0.3, 1.0, count).view(-1, 1, 1, 1)
    return (images * strength + 20 * (1 - strength)).to(torch.uint8).to(device)


def take_step(
    model: nn.Module, images: Tensor, own: slice, num_processes: int, group: SpatialGroup | None = None
) -> Tensor:
    """Forward and backward pass as training has them. Returns the logits of the images `own`."""
    count = len(images)
    masks, seeds = (images[:, 0] > 100).to(torch.uint8), torch.arange(count) + 3

    def loss(logits: Tensor, masks: Tensor) -> Tensor:
        return LOSS(logits, masks, *([group] if group else []))

    factor = num_processes / count
    logits, _ = compute_gradients(model, images[own], masks[own], loss, nullcontext, seeds=seeds[own], factor=factor)
    return logits.detach()


def found_in(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """Logits, gradients and buffers."""
    found = {"logits": logits}
    found |= {f"gradient of {name}": each.grad for name, each in model.named_parameters() if each.grad is not None}
    return found | {f"buffer {name}": each.clone() for name, each in model.named_buffers()}


def largest_difference(found: dict[str, Tensor], plain: dict[str, Tensor], own: slice) -> float:
    """In shares of each tensor's largest number; infinite where not the same tensors are there."""
    if found.keys() != plain.keys():
        return float("inf")
    differences = []
    for name, tensor in plain.items():
        if name.endswith("k_proj.bias"):  # it moves all of a query's scores alike: its gradient is rounding alone
            continue
        expected = tensor[own] if name == "logits" else tensor
        scale = expected.abs().max().clamp(min=FAR) if expected.is_floating_point() else 1
        differences.append(float((found[name] - expected).abs().max() / scale))
    return worst(differences)


def main() -> None:
    """Do the task of the first argument, and write each thing that it finds into a file of the folder of the last."""
    task, setting, given, folder = sys.argv[1:]
    context = DistributedContext.start(SECONDS_TO_ANSWER)
    with (Path(folder) / f"{context.rank}.jsonl").open("w") as file:
        for found in TASKS[task](Setting(**json.loads(setting)), context, **json.loads(given)):
            file.write(json.dumps(found) + "\n")
            file.flush()
    context.wait()


if __name__ == "__main__":
    run_command(main)
