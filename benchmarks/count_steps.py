"""Counts the memory of the package's encoders again and writes `glioma_dist/scale/counted_steps.json`.

Run it after a change of code that decides the memory of a step, or of the versions of torch or timm. It takes some
minutes.
"""

import json
from collections.abc import Sequence
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
from glioma_dist.scale.step_memory import PARTS, Coefficients, SizeFormula, StepMemory
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
        found[kind] = values_of(formula)
    pixels = {kind: largest_pixels_of_kernels(name, kind) for kind in get_args(InTiles)}
    for in_backward in (False, True):
        large = replace(step, optimizer_in_backward=in_backward)
        formula = line_of_large_images(large, pixels["whole layers"])
        found[counted_steps.name_of("offload", True, in_backward, are_large=True)] = values_of(formula)
    return found | {"kernel_pixels": pixels}


def values_of(formula: SizeFormula) -> dict:
    """Of a formula, for JSON; what is nothing anyway is left out."""
    return {key: each for key, each in asdict(formula).items() if key != "host" or any(each)}


def line_between(step: Step, level: Level, max_pixels: int) -> SizeFormula:
    """A straight line in the pixels through counts at `LINE_UNITS`."""
    ends = counts_at(LINE_UNITS, step, level)
    moment = tuple(line_through(ends, part) for part in PARTS)
    return SizeFormula((moment,), max_pixels, line_through(ends, "host"), (line_through(ends, "besides_gradients"),))


def line_of_large_images(step: Step, max_pixels: int) -> SizeFormula:
    """A straight line for the peak of large images at the level offload. Their largest moment is another one than that
    of small images, so the parts are those of the larger count: weights, moments and gradients have their bytes there,
    what is kept grows with the pixels, and the rest takes what is left."""
    ends = counts_at(LARGE_UNITS, step, "offload", as_large=True)
    (small, low), (large, high) = ends
    slopes = {"kept": high.kept // large}
    slopes["momentary"] = (high.peak - low.peak) // (large - small) - slopes["kept"]
    moment = tuple((getattr(high, part) - slopes.get(part, 0) * large, 0, 0, slopes.get(part, 0)) for part in PARTS)
    return SizeFormula((moment,), max_pixels, line_through(ends, "host"), (line_through(ends, "besides_gradients"),))


def counts_at(
    units: Sequence[tuple[int, int]], step: Step, level: Level, as_large: bool = False
) -> list[tuple[int, StepMemory]]:
    """Units of images of these widths and heights, and what their steps take."""
    sizes = [Size(width * step_count.UNIT, height * step_count.UNIT) for width, height in units]
    counted = (step_count.count_at_size(replace(step, size=size), level, as_large) for size in sizes)
    return [(width * height, memory) for (width, height), memory in zip(units, counted, strict=True)]


def line_through(ends: Sequence[tuple[int, StepMemory]], name: str) -> Coefficients:
    """A straight line in the pixels for an attribute of the memory."""
    (small, low), (large, high) = ((number, getattr(memory, name)) for number, memory in ends)
    slope = (high - low) // (large - small)
    return (low - slope * small, 0, 0, slope)


def pruned(formula: SizeFormula) -> SizeFormula:
    """The same formula for sides from 2 to LARGEST_UNITS, without moments that are the peak at none of these sizes."""
    moments = largest_somewhere([tuple(map(sum, zip(*moment, strict=True))) for moment in formula.moments])
    besides = largest_somewhere(formula.besides_gradients)
    return replace(
        formula,
        moments=tuple(formula.moments[number] for number in moments),
        besides_gradients=tuple(formula.besides_gradients[number] for number in besides),
    )


def largest_somewhere(sums: Sequence[Coefficients]) -> list[int]:
    """Numbers of those that are the largest of all at some of these sizes; of equal ones the first."""
    sides = np.arange(step_count.LEAST_UNITS, counted_steps.LARGEST_UNITS + 1, dtype=np.int64)
    basis = (np.int64(1), sides[:, None], sides[None, :], sides[:, None] * sides[None, :])
    most = np.full((len(sides), len(sides)), -1, np.int64)
    which = np.zeros(most.shape, np.int64)
    for number, coefficients in enumerate(sums):
        num_bytes = sum(each * value for each, value in zip(coefficients, basis, strict=True))
        larger = num_bytes > most
        most[larger], which[larger] = num_bytes[larger], number
    return np.unique(which).tolist()


def straight(formula: SizeFormula) -> SizeFormula:
    """A formula that is linear in the number of pixels. Parts that grow with height or width alone become constants:
    their values at the traced size."""
    moments = [tuple(map(without_sides, moment)) for moment in formula.moments]
    sums = [tuple(map(sum, zip(*moment, strict=True))) for moment in moments]
    besides = [without_sides(each) for each in formula.besides_gradients]
    return replace(
        formula,
        moments=tuple(moments[number] for number in largest_lines(sums)),
        host=without_sides(formula.host),
        besides_gradients=tuple(besides[number] for number in largest_lines(besides)),
    )


def without_sides(coefficients: Coefficients) -> Coefficients:
    const, of_height, of_width, of_both = coefficients
    return (const + of_height * step_count.TRACE_HEIGHT + of_width * step_count.TRACE_WIDTH, 0, 0, of_both)


def largest_lines(sums: Sequence[Coefficients]) -> list[int]:
    """Numbers of lines that no other reaches at every size, by their constants; of equal ones the last."""
    last = {each: number for number, each in enumerate(sums)}
    return [
        last[line]
        for line in sorted(last)
        if not any(other != line and all(map(int.__ge__, other, line)) for other in last)
    ]


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
