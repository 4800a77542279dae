"""The decoder's last block beyond 2^31 numbers in a tensor, where 32-bit indices of kernels overflow."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import torch
from torch import Tensor

from glioma_dist.benchmark.proof.lines import Findings, Setting, worst
from glioma_dist.benchmark.proof.steps import build
from glioma_dist.errors import InputError, is_out_of_memory
from glioma_dist.model.unet import UNet
from glioma_dist.scale.planner import Level
from glioma_dist.scale.tiled_block import TiledBlock

MEGAPIXELS = (68, 100, 135)
"""Of a batch: the upsampled map has 32 channels and passes 2^31 numbers at 67.1, the convolved one, 16, at 134.2."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LEVELS: tuple[Level, ...] = ("none", "full")
TOLERANCE = 2e-2
"""Of bf16, in shares of a tensor's largest number."""
SIDE_STEP = 32
ROWS = 256
"""Of two maps that are compared at a time."""


def line_name(megapixels: int, layout: str, level: str) -> str:
    return f"{megapixels} Mpx, {layout}, {level}"


def look_at_last_block(setting: Setting, findings: Findings) -> None:
    """Two images go through the last block and the head together, and the second one alone: what overflows in a kernel
    changes the second, whose numbers lie at the end. Norms are in evaluation mode, so that images do not mix."""
    device = torch.device(setting.device)
    for level in LEVELS:
        model = build("mit_tiny", level, device).eval()
        for layout, memory_format in LAYOUTS.items():
            model.to(memory_format=memory_format)
            for megapixels in MEGAPIXELS:
                name = line_name(megapixels, layout, level)
                height, width = _half_size(megapixels * (1e3 if setting.tiny else 1e6) / 2)
                try:
                    difference = compare(run_last_block(model), model, height, width, memory_format)
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                except Exception as error:
                    if not (is_out_of_memory(error) or isinstance(error, InputError)):
                        raise
                    findings.skipped(name, f"2 images of {2 * width}x{2 * height}: {error}")
                    continue
                told = f"2 images of {2 * width}x{2 * height}, output and gradient of the second against it alone"
                findings.at_most(name, difference, TOLERANCE, note=told)


def _half_size(pixels: float) -> tuple[int, int]:
    """Height and width of the last block's input, for an output of at least so many pixels."""
    height = math.ceil(math.sqrt(pixels) / 2 / SIDE_STEP) * SIDE_STEP
    return height, math.ceil(pixels / (4 * height) / SIDE_STEP) * SIDE_STEP


def run_last_block(model: UNet) -> Callable[[Tensor], Tensor]:
    """Features (B, C, H, W) to logits (B, 1, 2H, 2W), as the decoder ends."""
    block, head = model.decoder.blocks[-1], model.decoder.head
    if isinstance(block, TiledBlock):  # takes the head along
        return lambda features: block(features, None, head)
    return lambda features: head(block(features, None))


def compare(
    block: Callable[[Tensor], Tensor], model: UNet, height: int, width: int, memory_format: torch.memory_format
) -> float:
    """The largest difference of the second image's logits and gradient, in shares of their largest number."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    channels = model.decoder.blocks[-1].conv1.in_channels
    features = torch.randn(2, channels, height, width, generator=generator, device=device, dtype=torch.bfloat16)
    both = _forward_and_backward(block, features.to(memory_format=memory_format), keep=slice(1, 2))
    gc.collect()
    alone = _forward_and_backward(block, features[1:].to(memory_format=memory_format), keep=slice(0, 1))
    return worst(_difference(found, expected) for found, expected in zip(both, alone, strict=True))


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest, in shares of the expected map's largest number. Where the maps are, some rows at a time: to copy
    them to the CPU takes seconds."""
    largest = max(float(rows.float().abs().max()) for rows in expected.split(ROWS, dim=2))
    pairs = zip(found.split(ROWS, dim=2), expected.split(ROWS, dim=2), strict=True)
    return worst(float((one.float() - other.float()).abs().max()) / max(largest, 1e-9) for one, other in pairs)


def _forward_and_backward(block: Callable[[Tensor], Tensor], features: Tensor, keep: slice) -> tuple[Tensor, Tensor]:
    """Logits and gradient of the images `keep`."""
    features = features.detach().requires_grad_()
    with torch.autocast(features.device.type, torch.bfloat16):
        logits = block(features)
    logits.float().square().mean(dim=(1, 2, 3)).sum().backward()
    return logits[keep].detach().clone(), features.grad[keep].clone()
