"""A step's memory as a formula of the size: against counts at sizes that it was not made from."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
from helpers import REPOSITORY, command, load_benchmark

from glioma_dist.benchmark.encoder_table import NEED_TWO_IMAGES
from glioma_dist.benchmark.plan_levels import COMPARED, levels_of
from glioma_dist.config import ModelConfig
from glioma_dist.config.plan import PlanConfig, parse_memory
from glioma_dist.errors import InputError
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss
from glioma_dist.registry import encoders
from glioma_dist.scale import counted_steps, kernel_limits, planner, step_count
from glioma_dist.scale.device_memory import GIB
from glioma_dist.scale.planner import Step
from glioma_dist.scale.step_memory import PARTS, Allocation, SizeFormula
from glioma_dist.scale.tile_size import largest_gpu_tile
from glioma_dist.size import Size

ENCODERS = [name for name in encoders.names() if name not in NEED_TWO_IMAGES]
STEPS = (("none", True), ("selective", True), ("none", False), ("selective", False))
ODD_SIZES = (Size(96, 160), Size(224, 64))
"""Units of 3x5 and 7x2."""
WITHOUT_FORMULA = ("efficientnet_b5", "efficientnet_lite0", "dpn92", "mit_tiny", "mit_b0", "mobilenet_v2")
"""At some level at least. The first three have maps whose sizes no product of sides is. The peak of the others is in
the decoder's last upsampling, whose backward pass goes in pieces."""
COUNTED_WITH = json.loads(counted_steps.FILE.read_text())["conditions"]
HERE = counted_steps.conditions()
OF_THE_TABLE = pytest.mark.skipif(
    any(COUNTED_WITH[name] != HERE[name] for name in counted_steps.LIBRARIES),
    reason=f"the table is of other versions: {COUNTED_WITH}, here {HERE}",
)
COUNT_AGAIN = "python benchmarks/count_steps.py writes glioma_dist/scale/counted_steps.json again"


def step_of(encoder: str, size: Size = ODD_SIZES[0], bf16: bool = True) -> Step:
    return Step(
        ModelConfig(encoder=encoder),
        size,
        1,
        bf16,
        tile_size=largest_gpu_tile(),
        loss=partial(segmentation_loss, DEFAULT_LOSS),
    )


DEEP = ("densenet169", "dpn92", "inceptionv4", "mit_b2", "mit_b3", "mit_b4", "mit_b5")
"""Encoders of many layers, of the same kinds as others have: counting them takes 10 to 35 s each."""


def is_exact_at(formula: SizeFormula, step: Step, level: str, sizes: tuple[Size, ...]) -> bool:
    return all(
        formula.at(*step_count.padded_units(size)) == step_count.count_at_size(replace(step, size=size), level)
        for size in sizes
    )


OF_EACH_ENCODER = [(encoder, *STEPS[number % 4]) for number, encoder in enumerate(ENCODERS)]
"""With one of the levels."""


@pytest.mark.parametrize(
    ("encoder", "level", "bf16"),
    [pytest.param(*how, marks=pytest.mark.slow if how[0] in DEEP else ()) for how in OF_EACH_ENCODER],
)
def test_the_formula_is_exact(encoder, level, bf16):
    """Every byte of every part, for every encoder of the package's table."""
    step = step_of(encoder, bf16=bf16)
    formula = step_count.trace_formula(step, level)
    if not is_exact_at(formula, step, level, ODD_SIZES):
        assert encoder in WITHOUT_FORMULA
        assert not step_count.is_exact(formula, step, level)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "level", "bf16"), OF_EACH_ENCODER)
def test_the_formula_is_found(encoder, level, bf16):
    """By comparing it with counts at three sizes; what is slow here is done below for one encoder."""
    step = step_of(encoder, bf16=bf16)
    formula = step_count.find_formula(step, level)
    if formula is None:
        assert encoder in WITHOUT_FORMULA
    else:
        assert is_exact_at(formula, step, level, ODD_SIZES)


@pytest.mark.parametrize(("level", "bf16"), STEPS)
def test_the_formula_is_exact_for_each_level(level, bf16):
    step = step_of("mit_b1", bf16=bf16)
    formula = step_count.find_formula(step, level)
    assert formula is not None  # compared with counts at three other sizes
    assert is_exact_at(formula, step, level, ODD_SIZES[1:])


def test_a_formula_is_the_largest_sum_of_what_is_alive():
    """Drawn allocations, whose bytes at any size are known, against a sum over all moments."""
    generator = random.Random(0)
    height, width = step_count.TRACE_HEIGHT, step_count.TRACE_WIDTH
    kinds = ((lambda h, w: 1), (lambda h, w: h), (lambda h, w: w), (lambda h, w: h * w))
    for _ in range(20):
        drawn = []
        for number in range(60):
            died = generator.choice([None, number + generator.randrange(1, 20)])
            bytes_of = generator.choice(kinds)
            drawn.append((generator.randrange(1, 80) * 8, bytes_of, number, died, generator.choice(PARTS[3:])))
        trace = [
            Allocation(size * of(height, width), 2 * born, died and 2 * died + 1, part)
            for size, of, born, died, part in drawn
        ]
        formula = SizeFormula.of_trace(trace, 0, height, width, 1)
        for h, w in ((2, 2), (2, 200), (200, 2), (31, 17)):
            alive = [
                sum(
                    size * of(h, w)
                    for size, of, born, died, _ in drawn
                    if born <= now and (died is None or died >= now)
                )
                for now in range(60)
            ]
            assert formula.at(h, w).peak == max(alive)


def test_moments_that_are_never_the_peak_are_left_out():
    (script,) = load_benchmark("count_steps")
    formula = step_count.find_formula(step_of("mit_b1"), "none")
    pruned = script.pruned(formula)
    assert len(pruned.moments) < len(formula.moments)
    generator = random.Random(0)
    for _ in range(500):
        sides = generator.randrange(2, 513), generator.randrange(2, 513)
        assert pruned.at(*sides) == formula.at(*sides)


def test_a_count_of_some_encoders_gives_the_others_no_new_conditions(monkeypatch, tmp_path):
    (script,) = load_benchmark("count_steps")
    file = tmp_path / "counted_steps.json"
    old = {"conditions": {"code": "old"}, "steps": {"mit_b0": {"of": "old code"}}}
    file.write_text(json.dumps(old))
    monkeypatch.setattr(counted_steps, "FILE", file)
    monkeypatch.setattr(script, "count_encoder", lambda name: {})
    config = script.CountStepsConfig(("mit_tiny",))
    with pytest.raises(InputError, match="the other encoders are of other code or other libraries; count all"):
        script.write_table(config)
    assert json.loads(file.read_text()) == old
    file.write_text(json.dumps(old | {"conditions": counted_steps.conditions()}))
    script.write_table(config)
    assert json.loads(file.read_text())["steps"] == old["steps"] | {"mit_tiny": {}}
    with pytest.raises(InputError, match="--encoders mit_b00: not of the package's table"):
        script.CountStepsConfig(("mit_tiny", "mit_b00")).validate()


@OF_THE_TABLE
def test_the_table_is_of_this_code():
    assert counted_steps._steps(), COUNT_AGAIN
    assert set(ENCODERS) <= counted_steps._steps().keys(), COUNT_AGAIN


@OF_THE_TABLE
@pytest.mark.parametrize("encoder", ["mit_b1", "resnet50"])
def test_the_table_holds_what_is_counted(encoder):
    for level, bf16 in STEPS[:3]:
        step = step_of(encoder, bf16=bf16)
        formula = counted_steps.find_formula(step, level)
        assert formula is not None, COUNT_AGAIN
        assert formula.at(5, 3) == step_count.count_at_size(step, level), COUNT_AGAIN


@OF_THE_TABLE
@pytest.mark.parametrize(
    ("encoder", "level", "size", "batch_size"),
    [
        ("mit_tiny", "full", Size(2048, 1536), 1),
        ("resnet50", "full", Size(2048, 1536), 1),
        ("mit_tiny", "offload", Size(2048, 1536), 1),
        ("resnet50", "offload", Size(2048, 1536), 2),
        ("mit_tiny", "offload", Size(9216, 8192), 1),
        pytest.param("mit_b3", "offload", Size(24192, 18176), 1, marks=pytest.mark.slow),
        ("efficientnet_lite0", "full", Size(2048, 1536), 1),
        ("efficientnet_lite0", "selective", Size(2048, 1536), 1),
        ("mit_tiny", "selective", Size(2001, 1503), 1),
        ("mit_tiny", "full", Size(1101, 777), 3),
        ("resnet50", "none", Size(333, 222), 3),
    ],
)
def test_what_is_not_counted_is_close(encoder, level, size, batch_size):
    """The level full, large images, maps that are padded, sides that are no multiple of 32, batches."""
    step = replace(step_of(encoder, size), batch_size=batch_size)
    found = counted_steps.find_memory(step, level)
    assert found is not None, COUNT_AGAIN
    counted = step_count.count_at_size(step, level)
    assert found.peak == pytest.approx(counted.peak, rel=0.07)
    assert found.host == pytest.approx(counted.host, rel=0.07)


@OF_THE_TABLE
@pytest.mark.parametrize("encoder", ENCODERS)
def test_no_step_of_the_table_is_counted(monkeypatch, encoder):
    """At sizes from that of a large photograph on, whole units or not, also beyond what the formulas were made for and
    what a kernel takes, and for batches."""
    assert counted_steps._steps(), COUNT_AGAIN

    def refuse(*_):
        raise AssertionError("counts a step")

    for name in ("count_at_size", "trace_formula", "build_without_weights"):
        monkeypatch.setattr(step_count, name, refuse)
    monkeypatch.setattr(kernel_limits, "largest_pixels_of_kernels", refuse)
    for size in ("2592x1952", "2001x1503", "8192x8160", "16384x16384"):
        for batch_size in (1, 3):
            plan = PlanConfig((Size.parse(size),), ModelConfig(encoder=encoder), batch_size, "24GiB")
            rows = list(levels_of(plan, plan.size[0], parse_memory("24GiB")))
            assert [row["name"] for row in rows] == [name for name, *_ in COMPARED]
            assert rows[1]["peak_gib"] < rows[0]["peak_gib"]


@OF_THE_TABLE
def test_a_small_image_takes_at_most_one_count_a_level(monkeypatch, tmp_path):
    """Of levels that have no formula there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert counted_steps._steps(), COUNT_AGAIN
    counted, count_at_size = [], step_count.count_at_size
    monkeypatch.setattr(step_count, "trace_formula", lambda *_: pytest.fail("traces a step"))
    monkeypatch.setattr(
        step_count, "count_at_size", lambda step, level, _: counted.append(level) or count_at_size(step, level)
    )
    plan = PlanConfig((Size(96, 64),), ModelConfig(encoder="mit_tiny"), 1, "24GiB")
    assert len(list(levels_of(plan, plan.size[0], parse_memory("24GiB")))) == len(counted) == len(COMPARED)


def test_a_table_of_other_versions_is_not_used(monkeypatch):
    step, conditions = step_of("mit_b1"), counted_steps.conditions()
    monkeypatch.setattr(counted_steps, "conditions", lambda: conditions | {"torch": "0.1"})
    counted_steps._steps.cache_clear()
    try:
        assert counted_steps.find_formula(step, "none") is None
        assert counted_steps.find_kernel_pixels("mit_b1", "no") is None
    finally:
        counted_steps._steps.cache_clear()


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"spatial_parallel": 2}, {"loss_name": "bce"}])
def test_the_table_answers_only_what_was_counted(change):
    assert counted_steps.find_formula(replace(step_of("mit_b1"), **change), "none") is None


def test_a_step_without_a_formula_is_counted(monkeypatch, tmp_path):
    """As one whose maps do not grow as the image does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("find_formula", "find_memory", "is_inexact"):
        monkeypatch.setattr(counted_steps, name, lambda *_: None)
    monkeypatch.setattr(SizeFormula, "at", lambda *_: None)
    monkeypatch.setattr(planner, "_formulas", {})
    step = step_of("mit_tiny")
    for _ in range(2):
        assert planner.count(step, "none") == step_count.count_at_size(step, "none")


PLAN = """
import atexit, resource, sys
from glioma_dist.cli.program import main
sys.argv = ["glioma-dist", "plan", *sys.argv[1:]]
@atexit.register
def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    sys.stderr.write(f"torch {'torch' in sys.modules} {used.ru_utime + used.ru_stime:.2f}")
main()
"""


def plan(*arguments: str) -> tuple[str, str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PLAN, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


def test_a_plan_that_is_known_is_printed_without_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ("--model.encoder", "mit_tiny", "--size", "160x96", "--gpu-memory", "1GiB")
    first = command("plan", *arguments, environment={"XDG_CACHE_HOME": str(tmp_path)})
    assert first.exit_code == 0, first.stderr
    assert list(tmp_path.rglob("step_memory.json"))  # it was not known
    second, said = plan(*arguments)
    assert first.stdout == second != ""
    assert "torch False" in said
    assert float(said.split()[-1]) < 2.5  # 0.2 s on an idle machine


@OF_THE_TABLE
@pytest.mark.parametrize("encoder", ["mit_b5", "efficientnet_b5"])
def test_a_plan_of_the_table_is_printed_within_ten_cpu_seconds(monkeypatch, tmp_path, encoder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out, said = plan("--model.encoder", encoder, "--size", "2592x1952", "--gpu-memory", "24GiB")
    assert "bf16, offload" in out
    assert float(said.split()[-1]) < 10, COUNT_AGAIN  # 3 s on an idle machine; 29 s where each level is counted


@pytest.mark.parametrize("arguments", [("timm/no_such_net", "64x64"), ("resnest50d", "64x64")])
def test_what_is_refused_is_refused_before_anything_is_printed(tmp_path, arguments):
    encoder, size = arguments
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    ended = command("plan", "--model.encoder", encoder, "--size", size, environment=environment)
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert encoder in ended.stderr


@OF_THE_TABLE
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("num_devices", [1, 4])
def test_the_largest_batch_fits_and_one_image_more_does_not(encoder, num_devices):
    for level, bf16 in (*STEPS[:3], ("full", True), ("offload", True)):
        step = replace(step_of(encoder, Size(2592, 1952), bf16), num_devices=num_devices)
        most = planner.largest_batch(step, level, 40 * GIB)
        peaks = [planner.count(replace(step, batch_size=number), level).peak for number in (most, most + 1)]
        assert most > 0
        assert peaks[0] <= 40 * GIB, level
        if most < kernel_limits.kernel_pixels(step, level) // (2592 * 1952):
            assert peaks[1] > 40 * GIB, level


@OF_THE_TABLE
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_table_knows_what_a_step_takes_besides_gradients(encoder):
    """Or devices that hold them all the time would be given too little."""
    for name, values in counted_steps._steps()[encoder].items():
        if name != "kernel_pixels":
            formula = SizeFormula.of_json(values)
            memory = formula.at(61, 81)
            assert memory.besides_gradients >= 0.999 * (memory.peak - memory.gradients), name


@OF_THE_TABLE
@pytest.mark.parametrize("level", ["none", "selective", "full", "offload"])
@pytest.mark.parametrize("encoder", ["mit_tiny", "resnet50"])
def test_what_several_devices_hold_is_close(encoder, level):
    """By the table's formulas, of steps in which gradients are there from the beginning."""
    step = step_of(encoder, Size(2048, 1536))
    held = replace(step, num_devices=2)
    found, counted = (
        planner.on_each_device(memory, held).peak
        for memory in (counted_steps.find_memory(step, level), step_count.count_at_size(step, level))
    )
    assert found == pytest.approx(counted, rel=0.05)


@OF_THE_TABLE
@pytest.mark.parametrize(
    ("size", "changed"),
    [
        (Size(2656, 736), {"batch_size": 4, "num_devices": 4, "num_micro_batches": 3}),
        (Size(1540, 2281), {}),  # sides that are padded
    ],
)
@pytest.mark.parametrize("level", ["full", "offload"])
def test_the_largest_batch_holds_for_micro_batches_and_odd_sizes(size, changed, level):
    step = replace(step_of("mit_tiny", size), **changed)
    most = planner.largest_batch(step, level, 8 * GIB)
    fit, beyond = (planner.count(replace(step, batch_size=number), level).peak for number in (most, most + 1))
    assert fit <= 8 * GIB < beyond


@OF_THE_TABLE
def test_the_largest_size_at_offload_fits_where_that_asked_for_is_large():
    """Offload keeps more of each pixel of smaller images."""
    step = step_of("mit_b5", Size(25905, 11881))
    size = planner.largest_size(step, "offload", 4 * GIB)
    assert not planner.fits(step, "offload", 4 * GIB)
    assert planner.count(replace(step, size=size), "offload").peak <= 4 * GIB
