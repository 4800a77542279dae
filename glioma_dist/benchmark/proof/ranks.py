"""What each process of a launch does for the checks of several GPUs: compare with the one process that it also is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from glioma_dist.benchmark.proof.lines import Setting
from glioma_dist.benchmark.proof.steps import LOSS
from glioma_dist.benchmark.proof.trainings import DECODER_CHANNELS
from glioma_dist.config import ModelConfig, ScaleConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import run_command
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.scale_model import scale_model
from glioma_dist.scale.spatial_group import SpatialGroup

FAR = 1e-3
"""Below which a tensor's largest number is taken for this, where differences are measured by it."""
WIDTH, HEIGHT = 64, 160
"""Five units of 32 rows: strips of unequal height."""


def compare_engine(setting: Setting, context: DistributedContext, encoder: str) -> dict[str, float]:
    """DDP, each process with its image of a batch, against one process with the whole batch, in fp64."""
    count = context.num_processes
    plain, images = build_double(encoder, context.device), draw(count, context.device)
    expected = found_in(plain, take_step(plain, images, slice(None), 1))
    model = synchronise_batch_norm(build_double(encoder, context.device), context.device)
    own = slice(context.rank, context.rank + 1)
    logits = take_step(context.accelerator.prepare_model(model), images, own, count)
    return {"difference": largest_difference(found_in(model, logits), expected, own)}


def compare_strips(setting: Setting, context: DistributedContext, encoder: str) -> dict[str, float]:
    """Each process a strip of one image, at each level, against one process with the whole image, in fp64."""
    count, found = context.num_processes, {}
    plain, images = build_double(encoder, context.device), draw(1, context.device)
    expected = found_in(plain, take_step(plain, images, slice(None), 1))
    group = SpatialGroup.join(context, count)
    for level in ("none", "selective", "full"):
        model = synchronise_batch_norm(build_double(encoder, context.device), context.device)
        scale_model(model, ScaleConfig(spatial_parallel=count), level, group)
        strip = group.cut(HEIGHT)
        parallel = context.accelerator.prepare_model(model)
        logits = take_step(parallel, images[:, :, strip], slice(None), count, group)
        logits = group.gather_strip(logits)
        found[level] = largest_difference(found_in(model, logits), expected, slice(None))
        context.accelerator._models.clear()
    return found


TASKS = {"engine": compare_engine, "strips": compare_strips}


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
        return LOSS(logits, masks, *([group.total] if group else []))

    factor = num_processes / count
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=False)
    logits, _ = compute_gradients(model, images[own], masks[own], loss, autocast, seeds=seeds[own], factor=factor)
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
    return max(differences)


def main() -> None:
    """Do the task of the first argument, and write what it found into a file of the folder of the last."""
    task, setting, given, folder = sys.argv[1:]
    context = DistributedContext.start()
    found = TASKS[task](Setting(**json.loads(setting)), context, **json.loads(given))
    (Path(folder) / f"{context.rank}.json").write_text(json.dumps(found))
    context.wait()


if __name__ == "__main__":
    run_command(main)
