"""The plan for a memory budget: against an exhaustive search, against counted steps, and against the levels."""

import itertools
import json
import random
import re
from dataclasses import asdict, replace
from functools import partial

import pytest
from encoder_helpers import narrow
from helpers import TINY_CHANNELS, load_benchmark

from glioma_dist.benchmark import memory_plan, plan_levels
from glioma_dist.cli.arguments import parse
from glioma_dist.config import ModelConfig, ScaleConfig, TrainConfig
from glioma_dist.config.plan import PlanConfig
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.scale import memory_budget, planner
from glioma_dist.scale.checkpoint_plan import LEVEL_PLANS, CheckpointPlan
from glioma_dist.scale.memory_budget import cheapest_plan, choose_plan, find_units, smallest_plan
from glioma_dist.scale.observed_step import observe
from glioma_dist.scale.step import ON_DEVICE, Step
from glioma_dist.scale.step_count import count_at_size
from glioma_dist.scale.step_memory import StepMemory
from glioma_dist.scale.step_units import Option, StepUnits, Unit
from glioma_dist.scale.tile_size import CPU_TILE, largest_gpu_tile
from glioma_dist.size import Size

STEPS = {
    "mit_tiny": Step(
        ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS),
        Size(512, 384),
        1,
        bf16=False,
        tile_size=CPU_TILE,
        loss=partial(segmentation_loss, "dice"),
    ),
}
STEPS["mit_tiny on strips of a GPU"] = replace(
    STEPS["mit_tiny"], bf16=True, spatial_parallel=2, num_devices=2, tile_size=largest_gpu_tile()
)
STEPS["resnet50"] = replace(
    STEPS["mit_tiny"],
    model=ModelConfig(encoder="resnet50", decoder_channels=TINY_CHANNELS, norm="group"),
    bf16=True,
    tile_size=largest_gpu_tile(),
)
LARGER = 0.02
"""By how much, as a share, a counted peak may be larger than the sum of its units."""
SMALLER = 0.12
"""The same for smaller: the sum counts a block's output that is kept for nobody."""


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        narrow(patch, "resnet50")
        patch.setattr(planner.counted_steps, "_steps", dict)  # of encoders as they are
        yield


def draw_units(generator: random.Random, number: int) -> StepUnits:
    """Units of drawn sizes."""

    def draw_option(keeps: str) -> Option:
        return Option(keeps, "whole", *(generator.randrange(-20, 60) for _ in range(3)), generator.random(), 1.0)

    units = [
        Unit(
            tuple(draw_option(keeps) for keeps in ("all", "attention", "input")[: generator.randint(1, 3)]),
            generator.randrange(50),
            generator.randrange(50),
        )
        for _ in range(number)
    ]
    zeros = {"rest": 30, "kept": 100, "parameters": 10, "optimizer": 20, "seconds": 1.0, "flops": 1.0}
    return StepUnits(tuple(units[:-5]), tuple(units[-5:]), before_loss=10, at_loss=generator.randrange(60), **zeros)


@pytest.mark.parametrize("most_states", [memory_budget.MOST_STATES, 2])
def test_no_plan_of_all_is_cheaper(monkeypatch, most_states):
    """Every combination of drawn options, with exact states; with few states the plan fits, and is no cheaper."""
    monkeypatch.setattr(memory_budget, "MOST_STATES", most_states)
    generator = random.Random(0)
    num_found = 0
    for _ in range(60):
        units = draw_units(generator, 7)
        every = list(itertools.product(*(unit.options for unit in units.units)))
        for budget in (40, 80, 120, 200, 400):
            fitting = [sum(each.seconds for each in way) for way in every if units.peak(way) <= budget]
            found = cheapest_plan(units, budget)
            if found is None:
                assert not fitting or most_states == 2
                continue
            num_found += 1
            assert units.peak(found) <= budget
            cost = sum(option.seconds for option in found)
            assert cost == pytest.approx(min(fitting)) or (most_states == 2 and cost > min(fitting))
        if most_states > 2:
            least = min(map(units.peak, every))
            assert units.peak(smallest_plan(units)) == least or least < 0
    assert num_found > 100


@pytest.mark.parametrize("name", STEPS)
def test_the_units_of_a_step_add_up_to_its_memory(name):
    """At each level, and with options drawn at random."""
    step = STEPS[name]
    units, generator = find_units(step), random.Random(name)
    ways = [units.options_of(LEVEL_PLANS[level]) for level in ON_DEVICE]
    ways += [tuple(generator.choice(unit.options) for unit in units.units) for _ in range(2)]
    for options in ways:
        assert units.options_of(units.plan(options)) == options
        counted = count_at_size(step, units.plan(options)).peak
        assert (1 - LARGER) * counted <= units.peak(options) <= (1 + SMALLER) * counted
        assert units.memory(options).peak == units.peak(options)
    assert units.peak(ways[0]) == count_at_size(step, "none").peak
    assert StepUnits.of_json(json.loads(json.dumps(asdict(units)))) == units


@pytest.mark.parametrize("name", STEPS)
def test_a_plan_fits_its_budget_and_computes_no_more_than_a_level_that_fits(name):
    step = STEPS[name]
    units = find_units(step)
    peaks = {level: planner.count(step, LEVEL_PLANS[level]).peak for level in ON_DEVICE}
    levels = {level: units.options_of(LEVEL_PLANS[level]) for level in ON_DEVICE}
    for level, peak in peaks.items():
        chosen = choose_plan(step, peak)
        assert chosen.memory == planner.count(step, chosen.plan)
        assert chosen.memory.peak <= peak
        of_level = sum(option.seconds for option in levels[level]) / units.seconds
        assert chosen.recomputed_time <= of_level * (1 + 1e-9)
    assert choose_plan(step, peaks["none"]).recomputed_time == 0
    assert chosen.recomputed_flops < 1
    between = choose_plan(step, (peaks["none"] + min(peaks.values())) / 2)
    assert between.recomputed_time > 0
    assert between.plan not in LEVEL_PLANS.values()


@pytest.mark.parametrize("encoder", ["mit_tiny", "mobilenet_v2"])
@pytest.mark.parametrize("launch", [{}, {"num_devices": 2}, {"num_devices": 2, "spatial_parallel": 2}])
def test_what_the_least_step_needs_is_not_refused(encoder, launch):
    """Also of a small step, most of which is weights, so that the sum of its units is rough."""
    model = replace(STEPS["mit_tiny"].model, encoder=encoder)
    step = replace(STEPS["mit_tiny"], model=model, size=Size(64, 64), batch_size=2, **launch)
    peaks = [planner.count(step, LEVEL_PLANS[level]).peak for level in ON_DEVICE]
    for budget in (min(peaks), (min(peaks) + max(peaks)) / 2):
        assert choose_plan(step, budget).memory.peak <= budget


@pytest.mark.parametrize("name", STEPS)
def test_a_larger_budget_never_computes_more_again(name):
    units = find_units(STEPS[name])
    low, high = units.peak(smallest_plan(units)), units.peak([unit.options[0] for unit in units.units])
    costs = []
    for part in range(41):
        found = cheapest_plan(units, low + (high - low) * part / 40)
        costs.append(sum(option.seconds for option in found))
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[20] > costs[-1] == 0


def test_a_step_is_observed_once_and_the_plan_is_the_same(monkeypatch):
    first = choose_plan(STEPS["mit_tiny"], 150e6)
    monkeypatch.setattr(memory_budget, "observe", None)
    assert choose_plan(STEPS["mit_tiny"], 150e6) == first
    again = observe(STEPS["mit_tiny"])
    assert again == find_units(STEPS["mit_tiny"])


def test_gradients_of_ddp_and_a_moving_average_are_within_the_budget():
    step = replace(STEPS["mit_tiny"], num_devices=2, has_average=True)
    alone, shared = (choose_plan(each, 150e6) for each in (STEPS["mit_tiny"], step))
    assert shared.memory.peak <= 150e6
    assert shared.memory.gradients >= 0.9 * shared.memory.parameters
    assert shared.recomputed_time >= alone.recomputed_time


def test_the_sum_of_a_reproducible_step_is_within_the_budget_once():
    """The mean that is made of it at the step's end stands beside no activations."""
    step = replace(STEPS["mit_tiny"], has_exact_sum=True)
    units = find_units(step)
    plain = units.options_of(LEVEL_PLANS["none"])
    assert memory_budget._held_besides(units, step) == units.optimizer
    chosen = choose_plan(step, (1 + LARGER) * (units.peak(plain) + units.optimizer))
    assert chosen.recomputed_time == pytest.approx(0, abs=1e-12)


def test_a_frozen_encoder_has_nothing_to_compute_again():
    step = replace(STEPS["mit_tiny"], freeze_encoder=True)
    units = observe(step)
    assert all(option.kept >= 0 for unit in units.segments for option in unit.options)
    level = count_at_size(step, "full").peak
    assert choose_plan(step, level).memory.peak <= level


def test_a_tile_per_layer_where_a_gpus_kernels_need_it(monkeypatch):
    """Beyond the size at which whole layers are too large for a kernel, no layer is computed as a whole."""
    monkeypatch.setattr(memory_budget, "kernels_fit", lambda step, level: level == "full")
    chosen = choose_plan(STEPS["mit_tiny"], 200e6)
    assert set(chosen.plan.layers) == {"tiles"}
    assert chosen.memory.peak <= 200e6


@pytest.mark.parametrize("text", ["8", "GiB", "-1GiB", "8 gigabytes", "0GiB", ""])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(InputError, match=r"--scale\.memory-budget"):
        ScaleConfig(memory_budget=text).validate()
    with pytest.raises(InputError, match="--memory-budget"):
        PlanConfig((Size(64, 64),), memory_budget=text).validate()


def test_a_budget_and_a_level_are_refused_together():
    for level in ("none", "auto"):
        ScaleConfig(memory_budget="8GiB", activation_checkpointing=level).validate()
    for level in ("selective", "full", "offload"):
        with pytest.raises(InputError, match=f"--scale.activation-checkpointing {level}: omit one of them"):
            ScaleConfig(memory_budget="8GiB", activation_checkpointing=level).validate()


def test_the_plan_command_tells_what_is_kept_and_the_command_to_train(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(plan_levels, "COMPARED", plan_levels.COMPARED[1:2])
    size = Size(250, 190)  # of which no formula is traced
    step = replace(STEPS["mit_tiny"], size=size, bf16=True, tile_size=largest_gpu_tile())
    units = find_units(step)
    num_bytes = (units.peak(smallest_plan(units)) + units.peak([unit.options[0] for unit in units.units])) / 2
    budget = f"{num_bytes / 1e6:.3f}MB"
    plan = PlanConfig((size,), step.model, memory_budget=budget, json=tmp_path / "plan.json")
    memory_plan.print_plan(plan)
    told = capsys.readouterr().out
    row = json.loads((tmp_path / "plan.json").read_text())["levels"][-1]
    assert row["peak_gib"] <= num_bytes / 2**30
    assert CheckpointPlan.parse(row["keeps"]) not in LEVEL_PLANS.values()
    assert f"keeps: {row['keeps']}" in told
    assert f"computed again: {row['recomputed_flops']:.1%} of the step's FLOPs" in told
    flags = told.rpartition("train.py ")[2].partition(" --data.train")[0].split()
    config = parse(TrainConfig, [*flags, "--data.train", "x"])
    assert config.scale.memory_budget == budget
    with pytest.raises(InputError, match=r"--memory-budget: 0.001 GiB .* the least that is possible is"):
        memory_plan.print_plan(replace(plan, memory_budget="1MB"))


@pytest.mark.parametrize(("budget", "advice"), [(0.6, "or more, that level, or smaller"), (0.4, "or more, or smaller")])
def test_a_refusal_names_offload_with_its_memory_where_that_takes_less(monkeypatch, budget, advice):
    """As it does for large images of large encoders: here it takes half of the smallest plan."""
    step, count = STEPS["mit_tiny"], planner.count
    with pytest.raises(InputError) as refused:
        choose_plan(step, 2**20)
    needed = int(re.search(r"give (\d+)MiB", str(refused.value))[1]) * 2**20
    half = StepMemory(0, 0, 0, needed // 2, 0)
    monkeypatch.setattr(planner, "count", lambda step, plan: half if plan == "offload" else count(step, plan))
    told = f"{half.peak / 2**30:.3f} GiB with --scale.activation-checkpointing offload in place of a budget; give "
    with pytest.raises(InputError, match=rf"GiB with all on the device, and {told}\d+MiB {advice} images$") as refused:
        choose_plan(step, budget * needed)
    assert len(str(refused.value)) <= 450


@pytest.mark.parametrize(
    ("script", "config", "flags", "words"),
    [
        ("memory_budget", "MemoryBudgetConfig", {"repeats": 0}, "--repeats 0"),
        ("reproducible", "CostConfig", {"steps": 2}, "--steps 2"),
        ("reproducible", "CostConfig", {"rounds": 0}, "--rounds 0"),
    ],
)
def test_a_measurement_of_no_step_is_refused_before_it_begins(script, config, flags, words):
    for module in load_benchmark(script):
        getattr(module, config)().validate()
        with pytest.raises(InputError, match=words):
            getattr(module, config)(**flags).validate()
