"""The plan of activation checkpointing that computes least a second time within a memory budget.

A unit's memory is added to what the units before it keep, so the cheapest plan is found exactly by dynamic programming
over the units, as the persistent schedules of Rotor (Beaumont et al. 2019, arXiv 1911.13214) are. The plan is then
counted as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from glioma_dist.errors import InputError
from glioma_dist.scale import answers, planner
from glioma_dist.scale.answer_key import answer_key
from glioma_dist.scale.checkpoint_plan import LEVEL_PLANS, CheckpointPlan
from glioma_dist.scale.device_memory import GIB
from glioma_dist.scale.kernel_limits import check_kernels, kernels_fit
from glioma_dist.scale.observed_step import observe
from glioma_dist.scale.step import ON_DEVICE, Step
from glioma_dist.scale.step_memory import StepMemory
from glioma_dist.scale.step_units import Option, StepUnits

MOST_STATES = 2**16
"""Beyond it, what units keep is rounded up to this part of what they keep at the level none, so that the number of
states has a bound. Networks of the package have some hundreds."""
NEAR = 0.05
"""Of the budget. A level whose units' sum is larger by more than that is not counted."""
MOST_COUNTS = 8
"""Of plans that are counted until one fits."""


@dataclass(frozen=True)
class ChosenPlan:
    """A plan, and what a step with it needs on one device."""

    plan: CheckpointPlan
    memory: StepMemory
    recomputed_time: float
    """Estimated time of what is computed more than at the level none, as a share of a step at that level."""
    recomputed_flops: float
    """The same of FLOPs."""


def choose_plan(step: Step, budget: float, counts: bool = True) -> ChosenPlan:
    """The plan that computes least more than the level none, with a peak of at most `budget` bytes on a device.

    It depends on its arguments only. counts: whether the step is counted with the plan, and the plan tightened where
    its peak is larger than the sum of its units; otherwise the memory is that sum. Raises InputError where nothing
    fits, with the least that is possible.
    """
    units = find_units(step)
    if not kernels_fit(step, "none"):
        check_kernels(step, "full")
        units = units.in_tiles()
    limit, best = budget - _held_besides(units, step), None
    for _ in range(MOST_COUNTS):
        chosen = cheapest_plan(units, limit)
        if chosen is None:
            break
        found = _described(units, step, chosen, counts)
        if found.memory.peak <= budget:
            best = found
            break
        limit -= found.memory.peak - budget
    best = _cheapest_level(units, step, budget, best, counts) or best
    if best is not None:
        return best
    ways = (smallest_plan(units), *(units.options_of(LEVEL_PLANS[level]) for level in ON_DEVICE))
    found = [_described(units, step, options, counts=True) for options in ways]
    if fitting := [each for each in found if each.memory.peak <= budget]:  # of a small step, whose units' sum is rough
        return min(fitting, key=lambda each: each.recomputed_time)
    raise InputError(_why_nothing_fits(step, budget, min(each.memory.peak for each in found)))


def _why_nothing_fits(step: Step, budget: float, needed: int) -> str:
    """needed: bytes of the smallest plan. No plan of a budget keeps activations on the host, as the level offload."""
    images = f"{step.batch_size} image{'s' if step.batch_size > 1 else ''} of {step.size}"
    least = f"the least that is possible is {needed / GIB:.3f} GiB"
    offloaded = planner.count(step, "offload").peak
    if offloaded < needed:
        least += (
            f" with all on the device, and {offloaded / GIB:.3f} GiB with --scale.activation-checkpointing offload in "
            "place of a budget"
        )
    other = ", that level" if offloaded <= budget else ""
    return (
        f"{budget / GIB:.3f} GiB are not enough for a step of {step.model.encoder} on {images} on a device: {least}; "
        f"give {_rounded_up(needed)} or more{other}, or smaller images"
    )


def _rounded_up(num_bytes: int) -> str:
    return f"{-(-num_bytes // 2**20)}MiB"


def _described(units: StepUnits, step: Step, options: Sequence[Option], counts: bool) -> ChosenPlan:
    plan = units.plan(options)
    memory = planner.count(step, plan) if counts else planner.on_each_device(units.memory(options), step)
    seconds, flops = (sum(getattr(option, name) for option in options) for name in ("seconds", "flops"))
    return ChosenPlan(plan, memory, seconds / units.seconds, flops / max(1.0, units.flops))


def _held_besides(units: StepUnits, step: Step) -> int:
    """Bytes that a device holds besides what is counted of one device: gradients of DDP, the average of the weights."""
    counted = StepMemory(units.parameters, units.optimizer, 0, units.kept, 0)  # activations: not at the step's end
    return planner.on_each_device(counted, step).peak - counted.peak


def _cheapest_level(
    units: StepUnits, step: Step, budget: float, best: ChosenPlan | None, counts: bool
) -> ChosenPlan | None:
    """A level that is counted to fit and computes less again than the best plan so far; None where none does. The sum
    of its units may be some bytes more than the budget, or tightening may have missed it."""
    for plan in (LEVEL_PLANS[level] for level in ON_DEVICE):  # from the cheapest on
        options = units.options_of(plan)
        seconds = sum(option.seconds for option in options) / units.seconds
        is_cheaper = best is None or seconds < best.recomputed_time
        if is_cheaper and units.peak(options) + _held_besides(units, step) <= (1 + NEAR) * budget:
            found = _described(units, step, options, counts)
            if found.memory.peak <= budget:
                return found
    return None


def find_units(step: Step) -> StepUnits:
    """Those of the step, from the cache of answers, or observed, which takes as long as counting it twice."""
    alone = replace(step, num_devices=1, shards=False)
    key = answer_key(alone, "units", str(step.size))
    known = answers.read(key)
    try:
        return StepUnits.of_json(known or {})
    except (ValueError, TypeError, KeyError):
        units = observe(step)
    answers.write(key, asdict(units))
    return units


def smallest_plan(units: StepUnits) -> tuple[Option, ...]:
    """Of the plans with the least peak the cheapest."""
    low, high = 0, units.peak([unit.options[0] for unit in units.units])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cheapest_plan(units, middle) is not None else (middle, high)
    found = cheapest_plan(units, high)
    assert found is not None
    return found


def cheapest_plan(step: StepUnits, budget: float) -> tuple[Option, ...] | None:
    """Of the plans with a peak of at most `budget` bytes the one that computes least more than the level none; None
    where there is none.

    A state is what the units so far keep; of equal ones only the cheapest is followed, and of dearer ones only those
    that keep less.
    """
    kept, seconds = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    if step.rest > budget:
        return None
    for unit in step.units:
        found = []
        for number, option in enumerate(unit.options):
            grown = kept + option.kept
            fits = (unit.before + kept + option.forward <= budget) & (
                unit.before_backward + grown + option.backward <= budget
            )
            (states,) = np.nonzero(fits)
            found.append((grown[states], seconds[states] + option.seconds, states, np.full(len(states), number)))
        kept, seconds, states, numbers = (np.concatenate(each) for each in zip(*found, strict=True))
        if len(kept) > MOST_STATES:
            grid = max(1, step.kept // MOST_STATES)
            kept = -(-kept // grid) * grid
        order = np.lexsort((seconds, kept))
        cheapest = np.minimum.accumulate(seconds[order])
        is_new = np.r_[True, cheapest[1:] < cheapest[:-1]][: len(order)]
        order = order[is_new]
        kept, seconds = kept[order], seconds[order]
        history.append((states[order], numbers[order]))
    (fitting,) = np.nonzero(step.at_loss + kept <= budget)
    if not len(fitting):
        return None
    state, chosen = int(fitting[-1]), []  # the more is kept, the less is computed
    for unit, (states, numbers) in zip(reversed(step.units), reversed(history), strict=True):
        chosen.append(unit.options[numbers[state]])
        state = int(states[state])
    return tuple(reversed(chosen))
