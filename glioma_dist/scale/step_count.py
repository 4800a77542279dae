"""Counts the memory of a training step on fake tensors: at one size, or from one trace for all sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

import torch

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError, one_line
from glioma_dist.model.unet import UNet
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.answers import is_own_encoder
from glioma_dist.scale.checkpoint_plan import CheckpointPlan
from glioma_dist.scale.counted_tiles import CountedTiles
from glioma_dist.scale.memory_estimator import estimate_unet_step, trace_unet_step
from glioma_dist.scale.spatial_group import ImaginarySpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially
from glioma_dist.scale.step import IN_TILES, Level, Step
from glioma_dist.scale.step_memory import SizeFormula, StepMemory
from glioma_dist.size import Size

UNIT = 32
"""Pixels. If the sides of an image are multiples of it, the maps of all strides have whole sides."""
TRACE_HEIGHT, TRACE_WIDTH = 83, 97
"""Units of the traced image: primes that divide no number of channels of the package's encoders. An image of 2656x3104
is so small that no map exceeds the limits of a GPU's kernels (`kernel_limits.SURE_PIXELS`)."""
CHECKED_UNITS = ((7, 5), (5, 3), (23, 31))
"""Widths and heights at which a formula is compared with a count. There is no formula for encoders that pad their maps,
as efficientnet does, and for small ones whose peak is in the decoder's last upsampling, because its backward pass is
computed in pieces."""
LEAST_UNITS = 2
"""Smallest side with a formula, in units. On maps of one row or column some operations need no copy."""
FORMULA_ELEMENTS = 2**31
"""Elements of a map up to which every level computes it in the same way as a smaller map."""


def count_at_size(step: Step, level: Level | CheckpointPlan, as_large: bool = False) -> StepMemory:
    """Count the step of one device at its own size. as_large: compute at the level offload what is computed of large
    images."""
    model, size, _ = model_of_one_device(step, level)
    if as_large:
        model.encoder.large_images.pixels = 0
    with _named(step):
        asked = (step.loss, size, step.batch_size, step.bf16)
        return estimate_unet_step(model, *asked, in_backward=step.optimizer_in_backward)


def count_sent(step: Step, level: Level) -> tuple[int, int]:
    """Bytes that one of the devices that share an image sends in a step: halos to its neighbours, and keys and values
    to all (by rings). Bytes of gradients, which every engine sends, and of statistics of norms are not included."""
    model, size, group = model_of_one_device(step, level)
    estimate_unet_step(model, step.loss, size, step.batch_size, step.bf16)
    return group.halo_bytes, group.gathered_bytes


def has_formula(step: Step, level: Level) -> bool:
    """Whether the step runs the same operations at every size: whole images without tiles, whose sides are multiples of
    32. Only for a batch of one, because larger batches are rarely asked for."""
    sides = (step.size.height, step.size.width)
    return (
        level not in IN_TILES
        and step.spatial_parallel == 1
        and step.batch_size == 1
        and all(side % UNIT == 0 and side >= LEAST_UNITS * UNIT for side in sides)
    )


def find_formula(step: Step, level: Level) -> SizeFormula | None:
    """The memory of the step at any size, from one trace; None where a count at another size shows that it is no
    formula."""
    formula = trace_formula(step, level)
    return formula if level in IN_TILES or is_exact(formula, step, level) else None


def trace_formula(step: Step, level: Level) -> SizeFormula:
    """The same from the trace alone: close only, where maps are padded, or tiles are cut by the size."""
    traced = Size(TRACE_WIDTH * UNIT, TRACE_HEIGHT * UNIT)
    model, _, _ = model_of_one_device(step, level)
    with _named(step):
        asked = (step.loss, traced, step.batch_size, step.bf16, step.optimizer_in_backward)
        allocations, begin, host = trace_unet_step(model, *asked)
    largest = max(each.num_bytes for each in allocations if each.part in ("kept", "momentary"))
    pixels = traced.width * traced.height
    most_pixels = 2 * FORMULA_ELEMENTS * pixels // largest  # at least two bytes an element
    return SizeFormula.of_trace(allocations, begin, TRACE_HEIGHT, TRACE_WIDTH, most_pixels, host)


def is_exact(formula: SizeFormula, step: Step, level: Level) -> bool:
    """Whether the formula gives what is counted at other sizes."""
    return all(
        formula.at(height, width) == count_at_size(replace(step, size=Size(width * UNIT, height * UNIT)), level)
        for width, height in CHECKED_UNITS
    )


@contextmanager
def _named(step: Step) -> Iterator[None]:
    """Raises InputError if a step is not possible, for example with one image and an encoder that normalises pooled
    maps."""
    try:
        yield
    except ValueError as error:
        raise InputError(
            f"{step.batch_size} image{'s' if step.batch_size > 1 else ''} of {step.size} on a device, --model.encoder "
            f"{step.model.encoder}: a training step is not possible ({one_line(error, 160)}); give a larger "
            "--batch-size or larger images"
        ) from error


def model_of_one_device(
    step: Step, level: Level | CheckpointPlan, begin_tile: Callable[[int], None] = lambda number: None
) -> tuple[UNet, Size, ImaginarySpatialGroup]:
    """The model as one device has it, and the size of its strip. Of the tiles of a map it computes the largest only.

    begin_tile: is told before each tile for how many it stands.
    """
    tile_size = CountedTiles(step.tile_size.elements, step.tile_size.max_elements, begin_tile)
    model, group = build_without_weights(step.model), ImaginarySpatialGroup(step.spatial_parallel, step.size.height)
    if step.freeze_encoder:
        model.encoder.freeze()
    checkpoint_activations(model, level, tile_size)
    split_spatially(model, group, tile_size)
    strip = group.cut(step.size.height)
    return model, Size(step.size.width, strip.stop - strip.start), group


def build_without_weights(config: ModelConfig) -> UNet:
    """The network on the meta device."""
    if is_own_encoder(config.encoder):
        with torch.device("meta"):  # which draws no numbers
            return UNet(config)
    return deepcopy(_made_on_cpu(config))


@lru_cache(maxsize=1)
def _made_on_cpu(config: ModelConfig) -> UNet:
    """A network of an encoder that may not be made on the meta device; drawing its weights takes seconds."""
    return UNet(config).to("meta")


def padded_units(size: Size) -> tuple[int, int]:
    """Height and width in units, rounded up."""
    return math.ceil(size.height / UNIT), math.ceil(size.width / UNIT)
