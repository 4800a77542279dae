"""What each encoder costs, counted once and kept beside this module, so that a user sees it at once."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from glioma_dist.config import ModelConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.scale.memory_estimator import estimate_step_memory
from glioma_dist.size import Size

FILE = Path(__file__).with_name("encoders.json")
SIZES = {"704p": Size(704, 512), "1472p": Size(1472, 1120)}
"""The article's."""
NEED_TWO_IMAGES = ("resnest50d",)
"""It normalises globally pooled maps: with one image on a device there is one number a channel."""
GIGA, GIB = 10**9, 2**30


def asks_for_table(words: list[str]) -> bool:
    """Whether a command line says `--model.encoder list`."""
    return "--model.encoder=list" in words or ("--model.encoder", "list") in pairwise(words)


def count_encoder(name: str) -> dict[str, float | str | int]:
    """A row: millions of parameters of the U-Net and, at both sizes, 10^9 operations of a forward pass (a multiply-add
    is two) and peak GiB of a training step in fp32 with Adam, of one image or of `images`."""
    images = 2 if name in NEED_TWO_IMAGES else 1
    config = ModelConfig(encoder=name)
    row: dict[str, float | str | int] = {"encoder": name, "images": images}
    with torch.random.fork_rng(devices=[]):
        model = UNet(config)
    row["parameters_millions"] = round(sum(each.numel() for each in model.parameters()) / 1e6, 2)
    for size_name, size in SIZES.items():
        row[f"peak_gib_{size_name}"] = round(_peak(config, size, images) / GIB, 2)
    model = model.eval().to("meta")
    for size_name, size in SIZES.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, size.height, size.width, device="meta"))
        row[f"gflop_{size_name}"] = round(counter.get_total_flops() / GIGA, 1)
    return row


def encoder_table() -> str:
    """All encoders in columns of plain text, from what was counted."""
    head = f"{'encoder':<20}{'parameters':>12}" + "".join(
        f"{text:>14}" for size in SIZES for text in (f"GFLOP {size}", f"GiB {size}")
    )
    lines = [head]
    for row in json.loads(FILE.read_text()):
        cells = [f"{row['parameters_millions']:10.1f} M"]
        for size in SIZES:
            cells += [f"{row[f'gflop_{size}']:14.0f}", f"{row[f'peak_gib_{size}']:14.2f}"]
        note = f"   {row['images']} images" if row["images"] > 1 else ""
        lines.append(f"{row['encoder']:<20}{''.join(cells)}{note}")
    sizes = " and ".join(f"{name} ({size})" for name, size in SIZES.items())
    return "\n".join(
        [
            *lines,
            f"U-Nets at {sizes}. GFLOP: of a forward pass. GiB: peak of a training step of one image in fp32 with",
            "Adam, counted; tools/plan_memory.py has other sizes, bf16 and recomputation.",
        ]
    )


def _peak(config: ModelConfig, size: Size, images: int) -> int:
    with torch.random.fork_rng(devices=[]):
        model = UNet(config)
    return estimate_step_memory(model, partial(segmentation_loss, "dice"), size, images).peak
