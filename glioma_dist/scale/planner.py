"""What fits on a GPU, before it is rented: the levels of the memory ladder, counted, and the cheapest that
fits."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Literal

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.limits import MAX_PIXELS
from glioma_dist.scale import answers, counted_steps, step_count
from glioma_dist.scale.answer_key import answer_key
from glioma_dist.scale.checkpoint_plan import CheckpointPlan
from glioma_dist.scale.device_memory import GIB
from glioma_dist.scale.host_memory import check_host_memory
from glioma_dist.scale.kernel_limits import SURE_PIXELS, check_kernels, kernel_pixels, kernels_fit
from glioma_dist.scale.micro_batches import allows_micro_batches, with_accumulation, with_exact_sum
from glioma_dist.scale.step import IN_TILES, LARGE_PIXELS, LEVELS, ON_DEVICE, Level, Step
from glioma_dist.scale.step_memory import SizeFormula, StepMemory
from glioma_dist.scale.tile_size import largest_gpu_tile
from glioma_dist.size import Size

ADAM_MOMENTS = 2
MICRO_BATCHES = "--scale.activation-checkpointing full and --scale.gradient-accumulation"
SIDE_STEP = 32
STRAIGHT_PIXELS = 2**21
STRAIGHT_LARGE_PIXELS = 2**23
"""The same where images are counted as if they were large: their tiles have more rows of neighbours."""
_formulas: dict[str, SizeFormula | None] = {}
"""Those of this process, by their keys."""


def count(step: Step, level: Level | CheckpointPlan) -> StepMemory:
    """Memory of one device in a step with recomputation `level`. Nothing is counted for the package's encoders as they
    are by default (`counted_steps.py`): there it is exact, or within 7 %. For others a second question is answered from
    a file, and so are those about other sizes where one formula holds for all (`step_count.py`). A plan is counted at
    the step's size."""
    if isinstance(level, CheckpointPlan):
        return on_each_device(_at_size(step, level), step)
    return on_each_device(_by_table(step, level) or _by_formula(step, level) or _at_size(step, level), step)


def count_if_known(step: Step, level: Level | CheckpointPlan) -> StepMemory | None:
    """`count` where the package has the answer, which takes milliseconds; None where it would be traced."""
    if isinstance(level, CheckpointPlan):  # counted when it was chosen
        memory = answers.read_memory(answer_key(step, level, str(step.size)))
    else:
        memory = _by_table(step, level)
    return None if memory is None else on_each_device(memory, step)


def on_each_device(memory: StepMemory, step: Step) -> StepMemory:
    """With what the devices of a launch hold besides, or share, and what the step's optimizer and average keep.

    Steps are counted with Adam. Another optimizer keeps less all the time, and needs at most as much beside it.
    """
    if step.num_devices > 1:  # DDP holds a gradient of every trained parameter all the time
        memory = memory.with_gradients(memory.optimizer // ADAM_MOMENTS)
    memory = with_accumulation(memory, step)
    memory = with_exact_sum(memory) if step.has_exact_sum else memory
    memory = replace(memory, optimizer=memory.optimizer * step.num_moments // ADAM_MOMENTS)
    memory = _shard(memory, step) if step.shards else memory
    # The moving average of weights and running statistics has their types and their layout.
    return replace(memory, optimizer=memory.optimizer + memory.parameters) if step.has_average else memory


def _by_table(step: Step, level: Level) -> StepMemory | None:
    if step_count.has_formula(step, level):
        formula = counted_steps.find_formula(step, level)
        if formula is not None and step.size.width * step.size.height <= formula.max_pixels:
            return formula.at(*step_count.padded_units(step.size))
    return counted_steps.find_memory(step, level)


def _by_formula(step: Step, level: Level) -> StepMemory | None:
    if not step_count.has_formula(step, level) or counted_steps.is_inexact(step, level):
        return None
    formula = _find_formula(step, level)
    if formula is None or step.size.width * step.size.height > formula.max_pixels:
        return None
    return formula.at(*step_count.padded_units(step.size))


def _find_formula(step: Step, level: Level) -> SizeFormula | None:
    """Known to this process, known to the cache, or traced; that there is none is known as well."""
    key = answer_key(step, level, "any size")
    if key is None:
        return None  # it would be traced for each question
    if key not in _formulas:
        known = answers.read(key)
        if known is None:
            found = step_count.find_formula(step, level)
            answers.write(key, {} if found is None else asdict(found))
        else:
            found = answers.read_formula(key)
        _formulas[key] = found
    return _formulas[key]


def _at_size(step: Step, level: Level | CheckpointPlan, as_large: bool = False) -> StepMemory:
    key = answer_key(step, level, f"{step.size}{' as large' * as_large}")
    memory = answers.read_memory(key)
    if memory is None:
        memory = step_count.count_at_size(step, level, as_large)
        answers.write(key, asdict(memory))
    return memory


def _shard(memory: StepMemory, step: Step) -> StepMemory:
    """With weights, gradients and moments spread over the devices. At the worst moment the weights of two units (a
    layer or a decoder block) and the gradients of one are whole, and both of what is in no unit."""
    largest, rest = _unit_bytes(step.model)
    whole = 3 * largest + 2 * rest
    names = ["parameters", "optimizer", "gradients"]
    if step.num_micro_batches > 1:  # gradients are whole until the last micro-batch, after which they are sent
        names.remove("gradients")
    shared = {name: getattr(memory, name) // step.num_devices for name in names}
    return replace(memory, **shared, momentary=memory.momentary + whole)


@lru_cache
def _unit_bytes(config: ModelConfig) -> tuple[int, int]:
    """Bytes of the weights of the largest unit that FSDP2 gathers, and of all that is in no unit."""
    from glioma_dist.scale.fsdp import sharded_units  # half a second

    model = step_count.build_without_weights(config)
    units = [sum(each.nbytes for each in unit.parameters()) for unit in sharded_units(model)]
    return max(units), sum(each.nbytes for each in model.parameters()) - sum(units)


def largest_pixels(step: Step, level: Level, memory: float) -> float:
    """Pixels, over all padded images of a step on one device, or on those that share them, that `memory` bytes of
    each are enough for.

    Beyond `STRAIGHT_PIXELS` a step's memory is a straight line in its pixels: no attention matrix is held, and strips
    have their full size. It is drawn through two heights of the size asked for, there.
    """
    size = padded(step.size)
    asked = size.width * size.height * step.batch_size
    by_memory = _on_line(step, level, memory, as_large=level == "offload" and step.has_large_images)
    if fits(step, level, memory):
        own = asked
    else:  # of small images, before the line begins
        own, by_memory = 0, min(by_memory, asked - 1)
    if by_memory > SURE_PIXELS * step.spatial_parallel and step.tile_size.max_elements is not None:
        by_memory = min(by_memory, kernel_pixels(step, level) * step.spatial_parallel)
    return max(own, by_memory)


def _on_line(step: Step, level: Level, memory: float, as_large: bool) -> float:
    """Pixels that `memory` bytes are enough for on the straight line. as_large: on that of large images, which is drawn
    through smaller ones, counted as if they were large."""
    size = padded(step.size)
    formula = _stored_line(step, level, as_large)
    if formula is not None:
        width = size.width // SIDE_STEP
        beside = counted_steps.unpadded_bytes(step) / (size.width * size.height * step.batch_size)  # as `count` has it

        def peak(rows: int) -> float:
            one = replace(step, batch_size=1, size=Size(size.width, rows * SIDE_STEP))  # other micro-batches grow, too
            return on_each_device(formula.at(rows, width), one).peak + beside * one.size.width * one.size.height

        fit = max(1, bisect_right(range(1, MAX_PIXELS // (SIDE_STEP * size.width)), memory, key=peak))
        part = (memory - peak(fit)) / (peak(fit + 1) - peak(fit))
        return (fit + part) * SIDE_STEP * size.width
    begin = math.ceil((STRAIGHT_LARGE_PIXELS if as_large else STRAIGHT_PIXELS) * step.spatial_parallel / size.width)
    rows = math.ceil(begin / size.height) * size.height
    if as_large or (level == "offload" and 2 * rows * size.width >= LARGE_PIXELS * step.spatial_parallel):
        rows = math.ceil(begin / SIDE_STEP) * SIDE_STEP
    sizes = [Size(size.width, number * rows) for number in (1, 2)]
    low, high = (_peak_of_one(replace(step, size=each), level, as_large) for each in sizes)
    return size.width * rows * (1 + (memory - low) / (high - low))


def _peak_of_one(step: Step, level: Level, as_large: bool) -> int:
    """Of one image, or of two of half the height where an encoder needs two, such as a norm of globally pooled maps."""
    try:
        return _peak(replace(step, batch_size=1), level, as_large)
    except InputError:
        half = Size(step.size.width, max(SIDE_STEP, step.size.height // 2 // SIDE_STEP * SIDE_STEP))
        return _peak(replace(step, batch_size=2, size=half), level, as_large)


def _stored_line(step: Step, level: Level, as_large: bool) -> SizeFormula | None:
    """The formula of one image of any height, without counting; None where there is none."""
    if step.spatial_parallel > 1 or (level in IN_TILES and step.tile_size != largest_gpu_tile()):
        return None
    return counted_steps.find_formula(
        replace(step, batch_size=1, size=Size(step.size.width, SIDE_STEP)), level, as_large
    )


def _peak(step: Step, level: Level, as_large: bool) -> int:
    return on_each_device(_at_size(step, level, as_large), step).peak if as_large else count(step, level).peak


def fits(step: Step, level: Level, memory: float) -> bool:
    """Whether a device can take the step: its memory, and its kernels."""
    return kernels_fit(step, level) and count(step, level).peak <= memory


def largest_batch(step: Step, level: Level, memory: float) -> int:
    """The most images of the step's size on one device, or on those that share them."""
    size = padded(step.size)
    return int(largest_pixels(step, level, memory) / (size.width * size.height))


def largest_size(step: Step, level: Level, memory: float) -> Size | None:
    """The largest size of the step's shape and batch that a run takes; sides are multiples of 32. None where none
    fits."""
    size = padded(step.size)
    pixels = largest_pixels(step, level, memory)
    if level == "offload" and step.has_large_images:
        pixels = pixels if pixels >= _least_of_large(step) else _pixels_of_small(step, memory)
    # Of an encoder of others only the decoder keeps less then, which the counts are not worth.
    elif level == "offload" and answers.is_own_encoder(step.model.encoder):
        pixels = max(pixels, _pixels_of_large(step, memory))
    pixels = min(pixels, MAX_PIXELS * step.batch_size)
    factor = math.sqrt(max(0, pixels) / (size.width * size.height * step.batch_size))
    width, height = (int(side * factor) // SIDE_STEP * SIDE_STEP for side in (size.width, size.height))
    is_possible = width >= SIDE_STEP and height >= SIDE_STEP * step.spatial_parallel
    return Size(width, height) if is_possible else None


def _pixels_of_large(step: Step, memory: float) -> float:
    """Pixels of a step's images where they are so large that offload keeps less of each; 0 where that is too much for
    `memory`."""
    pixels = _on_line(step, "offload", memory, as_large=True)
    large = replace(step, size=Size(step.size.width, math.ceil(LARGE_PIXELS / step.size.width) * step.spatial_parallel))
    if step.tile_size.max_elements is not None:
        pixels = min(pixels, kernel_pixels(large, "offload") * step.spatial_parallel)
    return pixels if pixels >= _least_of_large(step) else 0


def _pixels_of_small(step: Step, memory: float) -> float:
    """Pixels of a step's images where they are so small that offload keeps all of each."""
    small = replace(step, size=Size(step.size.width, SIDE_STEP * step.spatial_parallel))
    pixels = min(_on_line(small, "offload", memory, as_large=False), _least_of_large(step) - 1)
    if step.tile_size.max_elements is not None:
        pixels = min(pixels, kernel_pixels(small, "offload") * step.spatial_parallel)
    return pixels


def _least_of_large(step: Step) -> int:
    """Pixels of a step whose images are large."""
    return LARGE_PIXELS * step.spatial_parallel * step.batch_size


def padded(size: Size) -> Size:
    """What the network makes of a size: sides that are multiples of 32."""
    return Size(*(math.ceil(side / SIDE_STEP) * SIDE_STEP for side in (size.width, size.height)))


def choose(step: Step, memory: float, among: Sequence[Level] = LEVELS, host: float | None = None) -> Level | None:
    """The quickest level of recomputation with which the step fits into `memory` bytes, and where offload may be taken
    into `host` bytes of the host; None where none does."""
    among = [level for level in among if level in ON_DEVICE or host is not None]
    found = next((level for level in among if fits(step, level, memory)), None)
    return None if found == "offload" and count(step, found).host > (host or 0) else found


def resolve(level: Level | Literal["auto"], step: Step, memory: float, host: float | None = None) -> Level:
    """`level`, and for auto the quickest that fits; offload only where `host` bytes of the host are known.
    Raises InputError where none fits, and where offload needs more of the host."""
    if level != "auto":
        check_kernels(step, level)
        if level == "offload" and host is not None:
            check_host_memory(count(step, level).host, host)
        return level
    if not any(kernels_fit(step, each) for each in LEVELS):
        check_kernels(step, "full")
    chosen = choose(step, memory, host=host)
    if chosen is None:
        told = advice(step, memory, host=host)
        raise InputError(f"--scale.activation-checkpointing auto: {told}")
    return chosen


def advice(step: Step, memory: float, tried: Level | None = None, host: float | None = None) -> str:
    """In words: what a step needs, and which flags make it fit into `memory` bytes, and `host` of the host;
    `tried` is known not to."""
    levels = ON_DEVICE if host is None else LEVELS
    chosen = choose(step, memory, levels if tried is None else LEVELS[LEVELS.index(tried) + 1 :], host)
    place = f"{step.spatial_parallel} devices" if step.spatial_parallel > 1 else "this device"
    asked = f"{step.batch_size} image{'s' if step.batch_size > 1 else ''} of {step.size} on {place}"
    asked = asked if step.num_micro_batches == 1 else f"a micro-batch of {asked}"
    needs = ", ".join(
        f"{count(step, level).peak / GIB:.1f} GiB with --scale.activation-checkpointing {level}" for level in levels
    )
    text = f"{asked}: {needs} are needed; there are {memory / GIB:.1f} GiB"
    if chosen:
        return f"{text}: give --scale.activation-checkpointing {chosen}"
    if (number := least_micro_batches(step, memory)) is not None:
        return f"{text}: give {MICRO_BATCHES} {number}, which changes no result"
    images, size = largest_batch(step, "full", memory), largest_size(step, "full", memory)
    if 0 < images < step.batch_size:
        batch_size = images * step.num_micro_batches * step.num_devices // step.spatial_parallel
        return f"{text}: give --scale.activation-checkpointing full and --batch-size {batch_size}"
    if size is not None and size.width < step.size.width:
        return f"{text}: give --scale.activation-checkpointing full and at most --data.size {size}"
    return f"{text}: give a smaller --batch-size, --data.size or --model.encoder, and see what else uses the memory"


def least_micro_batches(step: Step, memory: float) -> int | None:
    """In how many micro-batches, tried by halving, a device's images fit with the level full; None where none do."""
    images = step.batch_size * step.num_micro_batches
    if step.batch_size == 1 or not allows_micro_batches(step.model):
        return None
    at_once = step.batch_size
    while at_once > 1:
        at_once = math.ceil(at_once / 2)
        number = math.ceil(images / at_once)
        if fits(replace(step, batch_size=at_once, num_micro_batches=number), "full", memory):
            return number
    return None
