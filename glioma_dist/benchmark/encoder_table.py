"""What each encoder costs, counted once and kept beside this module, so that a user sees it at once (no torch here)."""

from __future__ import annotations

import json
from pathlib import Path

from glioma_dist.size import Size

FILE = Path(__file__).with_name("encoders.json")
SIZES = {"704p": Size(704, 512), "1472p": Size(1472, 1120)}
"""The article's."""
NEED_TWO_IMAGES = ("resnest50d",)
"""It normalises globally pooled maps: with one image on a device there is one number a channel."""
GIGA, GIB = 10**9, 2**30


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
            "Adam, counted; glioma-dist plan has other sizes, bf16 and activation checkpointing.",
        ]
    )
