"""Observes the units of a step (`step_units.py`).

A step is observed twice on fake tensors, as a whole and in tiles. What a unit computes again, it computes as in its
forward pass, so all other choices follow from the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from glioma_dist.scale.checkpoint_plan import NUM_DECODER_UNITS, PLAIN, CheckpointPlan, Cut, DecoderPlan
from glioma_dist.scale.memory_estimator import count_unet_step
from glioma_dist.scale.step import Step
from glioma_dist.scale.step_count import model_of_one_device
from glioma_dist.scale.step_memory import StepMemory
from glioma_dist.scale.step_units import Option, StepUnits, Unit
from glioma_dist.scale.unit_costs import MemoryCurve, ObservedUnit, Speed, UnitObserver, Work

CPU_SPEED = Speed(1e11, 2e10, 1e-5)
"""Of a few cores: 100 GFLOP/s and 20 GB/s. A plan depends on the ratios only."""
GPU_SPEED = Speed(312e12, 2.0e12, 1e-5)
"""Of an A100 in bf16 (NVIDIA A100 80GB data sheet), and a bare operation of PyTorch (`tile_size.py`)."""
DIGITS = 12
"""Of seconds: what is less is the rounding of a sum."""
NUM_BLOCKS = NUM_DECODER_UNITS - 1
OBSERVED: dict[Cut, CheckpointPlan] = {
    cut: CheckpointPlan(("all",), (cut,), (PLAIN, *[DecoderPlan("all", cut)] * NUM_BLOCKS)) for cut in get_args(Cut)
}


def observe(step: Step) -> StepUnits:
    """Observe a step. It takes as long as counting it twice, or less: in tiles only what can be is computed."""
    speed = CPU_SPEED if step.tile_size.max_elements is None else GPU_SPEED
    whole, curve, states = _observe(step, OBSERVED["whole"], speed)
    # Strips that are computed function by function know how they are cut, which a stand-in would not.
    known = whole.segments if step.spatial_parallel == 1 else ()
    in_tiles, tiled_curve, _ = _observe(step, OBSERVED["tiles"], speed, known)
    last = whole.decoder[-1]
    loss_end = curve.end if last.begin_backward is None else last.begin_backward
    observed = whole.segments + whole.decoder
    ends = _backward_ends(observed, curve)
    tiled_ends = _backward_ends(in_tiles.segments + in_tiles.decoder, tiled_curve)
    units = []
    for number, unit in enumerate(observed):
        other = (in_tiles.segments + in_tiles.decoder)[number]
        has_tiles = bool(unit.layers) if number < len(whole.segments) else number >= len(observed) - NUM_BLOCKS
        sides = [Side(unit, curve, ends[number], whole.forward_end)]
        sides += [Side(other, tiled_curve, tiled_ends[number], in_tiles.forward_end)] if has_tiles else []
        units.append(_unit(sides, is_last=unit is last))
    total = Work()
    for unit in observed:
        for work in (unit.forward, unit.backward):
            total.add(work.seconds, work.flops)
    number = len(whole.segments)
    return StepUnits(
        tuple(units[:number]),
        tuple(units[number:]),
        before_loss=int(curve.in_use[last.end]),
        at_loss=curve.peak(last.end, loss_end),
        rest=curve.peak(ends[0], curve.end),
        kept=int(curve.in_use[whole.forward_end] - curve.in_use[observed[0].begin]),
        parameters=states.parameters,
        optimizer=states.optimizer,
        seconds=total.seconds,
        flops=total.flops,
    )


def _observe(
    step: Step, plan: CheckpointPlan, speed: Speed, known: Sequence[ObservedUnit] = ()
) -> tuple[UnitObserver, MemoryCurve, StepMemory]:
    observer = UnitObserver(speed, known)
    model, size, _ = model_of_one_device(step, plan, observer.begin_tile)
    observer.watch_model(model)
    ledger, _ = count_unet_step(
        model,
        step.loss,
        size,
        step.batch_size,
        step.bf16,
        begin=observer.watch,
        after_forward=observer.after_forward,
    )
    return observer, MemoryCurve(ledger.allocations(), ledger.moment), ledger.at_peak()


def _backward_ends(units: Sequence[ObservedUnit], curve: MemoryCurve) -> list[int]:
    """When the backward pass of each unit ends: where the one of the unit before it begins."""
    ends, next_begin = [], curve.end
    for unit in units:
        ends.append(next_begin)
        next_begin = next_begin if unit.begin_backward is None else unit.begin_backward
    return ends


@dataclass(frozen=True)
class Side:
    """A unit in one of the two observed steps."""

    unit: ObservedUnit
    curve: MemoryCurve
    backward_end: int
    forward_end: int

    @property
    def inner(self) -> int:
        """Bytes that it keeps, its inputs and its output aside."""
        unit = self.unit
        return self.curve.kept(unit.begin, unit.end, self.forward_end, but=unit.output)

    def inputs(self) -> dict[int, tuple[int, bool]]:
        """Bytes of each input, and whether something keeps it."""
        storages = [(number, self.curve.storages[born]) for number, born in enumerate(self.unit.inputs)]
        return {
            number: (each.num_bytes, each.died is None or each.died > self.forward_end) for number, each in storages
        }


def _unit(sides: Sequence[Side], is_last: bool) -> Unit:
    plain, unit = sides[0], sides[0].unit
    begin_backward = plain.curve.end if unit.begin_backward is None else unit.begin_backward
    options: list[Option] = []
    for side, cut in zip(sides, get_args(Cut), strict=False):
        options += _options(side, plain, cut, is_last)
    return Unit(
        tuple(options),
        before=int(plain.curve.in_use[unit.begin]),
        before_backward=int(plain.curve.in_use[begin_backward]),
        layers=tuple(unit.layers),
    )


def _options(side: Side, plain: Side, cut: Cut, is_last: bool) -> list[Option]:
    """The choices of a unit in one of the two observed steps."""
    unit, curve = side.unit, side.curve
    in_use, kept_inputs = curve.in_use, plain.inputs()
    forward = curve.peak(unit.begin, unit.end) - int(in_use[unit.begin])
    base = Work()
    for work, sign in ((unit.forward, 1), (unit.backward, 1), (plain.unit.forward, -1), (plain.unit.backward, -1)):
        base.add(sign * work.seconds, sign * work.flops)
    base = Work(max(0.0, round(base.seconds, DIGITS)), max(0.0, base.flops))
    more = sum(
        num_bytes for number, (num_bytes, is_kept) in side.inputs().items() if is_kept and not kept_inputs[number][1]
    )
    if unit.begin_backward is None:
        return [Option("all", cut, side.inner - plain.inner + more, forward, 0, base.seconds, base.flops)]
    backward = curve.peak(unit.begin_backward, side.backward_end) - int(in_use[unit.begin_backward])
    kept = side.inner - plain.inner + more
    options = [Option("all", cut, kept, forward, backward, base.seconds, base.flops)]
    if is_last:
        return options
    all_inputs = sum(num_bytes for num_bytes, is_kept in kept_inputs.values() if not is_kept)
    attention = sum(num_bytes for _, num_bytes in unit.attention)
    for keeps in ("attention", "input") if attention else ("input",):
        remembered = attention if keeps == "attention" else 0
        events = unit.attention if keeps == "attention" else ()
        # Computed again, while its output's gradient is there; then its backward pass with all that it kept.
        again = curve.peak_without(unit.begin, unit.end, events) - int(in_use[unit.begin])
        spared = unit.of_attention if keeps == "attention" else Work()
        options.append(
            Option(
                keeps,
                cut,
                remembered - plain.inner + all_inputs,
                forward,
                max(again, side.inner - remembered + backward),
                base.seconds + unit.forward.seconds - spared.seconds,
                base.flops + unit.forward.flops - spared.flops,
            )
        )
    return options
