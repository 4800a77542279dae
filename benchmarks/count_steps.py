"""Counts the memory of the package's encoders again and writes `glioma_dist/scale/counted_steps.json`.

Run it after a change of code that decides the memory of a step, or of the versions of torch or timm. It takes some
minutes.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import get_args

import numpy as np

from glioma_dist.cli.arguments import parse
from glioma_dist.config import ModelConfig
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.files import write_atomically
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss
from glioma_dist.registry import encoders
from glioma_dist.scale import counted_steps, step_count
from glioma_dist.scale.kernel_limits import InTiles, largest_pixels_of_kernels
from glioma_dist.scale.planner import Level, Step
from glioma_dist.scale.step import IN_TILES
from glioma_dist.scale.step_memory import NOTHING, PARTS, SizeFormula
from glioma_dist.scale.tile_size import largest_gpu_tile
from glioma_dist.size import Size

COUNTED: tuple[tuple[Level, bool, bool], ...] = (
    ("none", False, False),
    ("none", True, False),
    ("selective", True, False),
    ("full", True, False),
    ("offload", True, False),
    ("offload", True, True),
)
"""Those of `glioma-dist plan`."""
LINE_UNITS = ((48, 44), (96, 88))
"""Widths and heights of images of 2.2 and 8.7 million pixels."""
LARGE_UNITS = ((96, 88), (192, 176))
"""The same for what is computed of large images: 8.7 and 34.6 million pixels. Larger ones lie on the line, too
(`tests/unit/test_step_formulas.py`), and take minutes each."""


@dataclass(frozen=True)
class CountStepsConfig:
    """Count steps again and write glioma_dist/scale/counted_steps.json."""

    encoders: tuple[str, ...] = ()
    """Encoders to count; the figures of others do not change, and are refused where they are of other code or other
    libraries. By default: all of the package's table."""

    def validate(self) -> None:
        unknown = sorted(set(self.encoders) - set(encoders.names()))
        if unknown:
            raise InputError(f"--encoders {unknown[0]}: not of the package's table; glioma-dist encoders lists it")


def count_encoder(name: str) -> dict[str, dict]:
    """Formulas of the steps of one image, and the pixels that a GPU's kernels can take."""
    found: dict[str, dict] = {}
    for level, bf16, in_backward in COUNTED:
        step = Step(
            ModelConfig(encoder=name),
            Size(64, 64),
            1,
            bf16,
            optimizer_in_backward=in_backward,
            tile_size=largest_gpu_tile(),
            loss=partial(segmentation_loss, DEFAULT_LOSS),
        )
        formula, kind = step_count.trace_formula(step, level), counted_steps.name_of(level, bf16, in_backward)
        are_exact = not any(name.endswith(counted_steps.CLOSE) for name in found)
        if level in IN_TILES and are_exact:
            formula = straight(formula)
        elif level not in IN_TILES and step_count.is_exact(formula, step, level):
            formula = pruned(formula)
        else:  # maps are padded, or the last upsampling goes in pieces
            formula = line_between(step, level, formula.max_pixels)
            kind += "" if level in IN_TILES else counted_steps.CLOSE
        found[kind] = {key: each for key, each in asdict(formula).items() if key != "host" or any(each)}
    pixels = {kind: largest_pixels_of_kernels(name, kind) for kind in get_args(InTiles)}
    for in_backward in (False, True):
        large = replace(step, optimizer_in_backward=in_backward)
        formula = line_of_large_images(large, pixels["whole layers"])
        found[counted_steps.name_of("offload", True, in_backward, are_large=True)] = asdict(formula)
    return found | {"kernel_pixels": pixels}


def line_between(step: Step, level: Level, max_pixels: int) -> SizeFormula:
    """A straight line in the pixels through counts at `LINE_UNITS`."""
    (small, low), (large, high) = (
        (width * height, step_count.count_at_size(replace(step, size=Size(width * 32, height * 32)), level))
        for width, height in LINE_UNITS
    )
    slopes = [(getattr(high, part) - getattr(low, part)) // (large - small) for part in PARTS]
    moment = tuple((getattr(low, part) - slope * small, 0, 0, slope) for part, slope in zip(PARTS, slopes, strict=True))
    host = (high.host - low.host) // (large - small)
    return SizeFormula((moment,), max_pixels, (low.host - host * small, 0, 0, host))


def line_of_large_images(step: Step, max_pixels: int) -> SizeFormula:
    """A straight line for the peak of large images at the level offload. Their largest moment is another one than that
    of small images, so the parts are those of the larger count: weights, moments and gradients have their bytes there,
    what is kept grows with the pixels, and the rest takes what is left."""
    (small, low), (large, high) = (
        (width * height, step_count.count_at_size(replace(step, size=Size(width * 32, height * 32)), "offload", True))
        for width, height in LARGE_UNITS
    )
    slopes = {"kept": high.kept // large}
    slopes["momentary"] = (high.peak - low.peak) // (large - small) - slopes["kept"]
    moment = tuple((getattr(high, part) - slopes.get(part, 0) * large, 0, 0, slopes.get(part, 0)) for part in PARTS)
    host = (high.host - low.host) // (large - small)
    return SizeFormula((moment,), max_pixels, (low.host - host * small, 0, 0, host))


def pruned(formula: SizeFormula) -> SizeFormula:
    """The same formula for sides from 2 to LARGEST_UNITS, without moments that are the peak at none of these sizes."""
    sides = np.arange(step_count.LEAST_UNITS, counted_steps.LARGEST_UNITS + 1, dtype=np.int64)
    basis = (np.int64(1), sides[:, None], sides[None, :], sides[:, None] * sides[None, :])
    peak = np.full((len(sides), len(sides)), -1, np.int64)
    which = np.zeros(peak.shape, np.int64)
    for number, moment in enumerate(formula.moments):
        coefficients = [sum(each) for each in zip(*moment, strict=True)]
        bytes_there = sum(each * value for each, value in zip(coefficients, basis, strict=True))
        larger = bytes_there > peak  # of equal ones the first
        peak[larger], which[larger] = bytes_there[larger], number
    return SizeFormula(tuple(formula.moments[number] for number in np.unique(which)), formula.max_pixels)


def straight(formula: SizeFormula) -> SizeFormula:
    """A formula that is linear in the number of pixels. Parts that grow with height or width alone become constants:
    their values at the traced size."""
    height, width = step_count.TRACE_HEIGHT, step_count.TRACE_WIDTH
    moments = []
    for moment in formula.moments:
        moments.append(tuple((const + h * height + w * width, 0, 0, both) for const, h, w, both in moment))
    largest = sorted({(sum(each[0] for each in m), sum(each[3] for each in m)): m for m in moments}.items())
    kept = [
        moment
        for (const, slope), moment in largest
        if not any(c >= const and s >= slope and (c, s) != (const, slope) for (c, s), _ in largest)
    ]
    const, h, w, both = formula.host
    host = (const + h * height + w * width, 0, 0, both)
    return SizeFormula(tuple(kept) or (tuple([NOTHING] * 5),), formula.max_pixels, host)


def write_table(config: CountStepsConfig) -> None:
    names = [name for name in encoders.names() if not config.encoders or name in config.encoders]
    known = {}
    if config.encoders and counted_steps.FILE.exists():
        table = json.loads(counted_steps.FILE.read_text())
        if table["conditions"] != counted_steps.conditions():  # the table has one for all encoders
            raise InputError(
                "--encoders: the figures of the other encoders are of other code or other libraries; count all of them"
            )
        known = table["steps"]
    for name in names:
        try:
            known[name] = count_encoder(name)
        except InputError as error:  # an encoder that needs two images
            print(f"{name}: {error}")
            known.pop(name, None)
            continue
        print(name, {kind: len(each.get("moments", ())) for kind, each in known[name].items()}, flush=True)
    table = {"conditions": counted_steps.conditions(), "steps": known}
    write_atomically(counted_steps.FILE, json.dumps(table, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    run_command(lambda: write_table(parse(CountStepsConfig)))
