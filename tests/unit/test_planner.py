"""The planner: what it foretells against what is counted and what is measured, its cache, its words."""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, TINY_CHANNELS, run
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from glioma_dist.benchmark import memory_plan
from glioma_dist.benchmark.memory_plan import choice
from glioma_dist.benchmark.spatial_parallel_report import estimated
from glioma_dist.cli import plan as plan_command
from glioma_dist.cli.arguments import parse
from glioma_dist.config import ModelConfig, TrainConfig
from glioma_dist.config.benchmark import SpatialParallelConfig
from glioma_dist.config.plan import PlanConfig, parse_memory
from glioma_dist.errors import InputError
from glioma_dist.limits import MAX_PIXELS
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet, build_model, normalise
from glioma_dist.scale import answer_key, answers, large_images, memory_estimator, planner, step_count
from glioma_dist.scale import step as step_module
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.checkpoint_plan import CheckpointPlan
from glioma_dist.scale.device_memory import GIB
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.host_memory import HostMemory
from glioma_dist.scale.memory_estimator import compute_as_on_gpu
from glioma_dist.scale.micro_batches import bytes_of_a_pixel
from glioma_dist.scale.offload import offload_of
from glioma_dist.scale.planner import LEVELS, ON_DEVICE, Step, count
from glioma_dist.scale.storage_ledger import StorageLedger, count_step
from glioma_dist.scale.tile_size import CPU_TILE, TileSize, largest_gpu_tile
from glioma_dist.size import Size
from glioma_dist.training.memory import _advice_in_time

TINY = Step(
    ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS),
    Size(64, 64),
    batch_size=1,
    bf16=False,
    tile_size=CPU_TILE,
    loss=partial(segmentation_loss, "dice"),
)

OUTPUTS = {"classes": ("live", "dead"), "targets": ("mask", "boundary")}
"""Of a model with three classes, the background among them, and a second target."""
MALLOPT_MMAP_THRESHOLD = -3
"""From glibc's malloc.h."""


@pytest.fixture(autouse=True, scope="module")
def shared_cache(tmp_path_factory):
    """Of this file: a step is counted once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_each_rung_needs_less_than_the_one_before():
    step = replace(TINY, size=Size(512, 384))
    peaks = [count(step, kind).peak for kind in LEVELS]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(LEVELS) == 4


@pytest.mark.parametrize("kind", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_the_largest_batch_and_size_are_what_counting_finds_there(kind):
    memory, step = GIB // 2, replace(TINY, size=Size(256, 192))
    images = planner.largest_batch(step, kind, memory)
    assert images > 20
    assert count(replace(step, batch_size=images), kind).peak == pytest.approx(memory, rel=0.05)
    size = planner.largest_size(step, kind, memory)
    assert (size.width % 32, size.height % 32) == (0, 0)
    assert count(replace(step, size=size), kind).peak == pytest.approx(memory, rel=0.07)  # sides are whole units


def set_large_pixels(monkeypatch, pixels: int) -> None:
    """And with it where the straight lines begin."""
    for module in (large_images, planner, step_module):
        monkeypatch.setattr(module, "LARGE_PIXELS", pixels)
    for name in ("STRAIGHT_PIXELS", "STRAIGHT_LARGE_PIXELS"):
        monkeypatch.setattr(planner, name, pixels // 4)


@pytest.mark.parametrize("asked", [Size(256, 192), Size(1024, 768), Size(2048, 1536)])
def test_the_largest_size_may_be_one_of_large_images(monkeypatch, asked):
    """Of which offload keeps less a pixel. Asked from a size that is not large, from one of which twice the rows are,
    and from one that is."""
    set_large_pixels(monkeypatch, 2**20)
    step, largest = replace(TINY, size=asked, tile_size=TileSize(2**18)), Size(2560, 1920)
    memory = count(replace(step, size=largest), "offload").peak
    size = planner.largest_size(step, "offload", memory)
    assert size.width * size.height == pytest.approx(largest.width * largest.height, rel=0.07)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_no_size_is_advised_that_a_run_refuses(monkeypatch, batch_size):
    monkeypatch.setattr(planner, "largest_pixels", lambda *_: 2.0**33)
    size = planner.largest_size(replace(TINY, size=Size(4000, 3000), batch_size=batch_size), "full", 0)
    assert Size.parse(str(size)) == size
    assert size.width * size.height == pytest.approx(MAX_PIXELS, rel=0.01)


def test_a_plan_that_fails_leaves_the_collection_of_cycles_as_it_was(monkeypatch):
    def fail(config: PlanConfig) -> None:
        assert not gc.isenabled()
        raise InputError(str(config.size[0]))

    monkeypatch.setattr(memory_plan, "print_plan", fail)
    with pytest.raises(InputError, match="64x32"):
        plan_command.run(PlanConfig((Size(64, 32),)))
    assert gc.isenabled()


def test_a_batch_of_images_that_are_not_large_is_not_counted_as_large(monkeypatch):
    set_large_pixels(monkeypatch, 2**20)
    step = replace(TINY, size=Size(1024, 768), tile_size=TileSize(2**18))
    expected = count(replace(step, batch_size=3), "offload").peak
    assert planner.largest_batch(step, "offload", 1.01 * expected) == 3


@pytest.mark.parametrize(
    ("width", "height", "batch_size", "level"), [(96, 64, 1, "none"), (96, 64, 4, "selective"), (512, 512, 2, "full")]
)
def test_what_does_not_fit_is_not_offered(level, width, height, batch_size):
    """Small images lie before the straight line by which larger ones are found."""
    loss = partial(segmentation_loss, "dice")
    step = Step(ModelConfig("mit_tiny"), Size(width, height), batch_size, True, tile_size=largest_gpu_tile(), loss=loss)
    memory = count(step, level).peak - 1
    assert not planner.fits(step, level, memory)
    assert planner.largest_pixels(step, level, memory) < width * height * batch_size


@pytest.mark.usefixtures("own_cache")
def test_a_second_question_is_answered_from_the_cache(monkeypatch, tmp_path):
    first = count(TINY, "full")
    monkeypatch.setattr(step_count, "estimate_unet_step", None)
    assert count(TINY, "full") == first
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        count(replace(TINY, size=Size(96, 64)), "full")
    for damaged in ("{", "[]", "null", '{"a": 3}'):  # as good as none
        (tmp_path / "glioma-dist" / "step_memory.json").write_text(damaged)
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            count(TINY, "full")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("damaged", ["a", None, 1.5, float("nan"), float("inf"), True, -1, [1], {}])
def test_a_damaged_answer_is_counted_again(tmp_path, damaged):
    file = tmp_path / "glioma-dist" / "step_memory.json"
    file.parent.mkdir(exist_ok=True)
    parts = dict.fromkeys(("parameters", "optimizer", "gradients", "kept", "momentary"), damaged)
    file.write_text(json.dumps({"key": parts}))
    assert answers.read_memory("key") is None
    file.write_text(json.dumps({"key": {"moments": [[[damaged] * 4] * 5], "max_pixels": damaged}}))
    found = answers.read_formula("key")
    assert found is None or all(isinstance(each, int) for each in (found.max_pixels, found.at(1, 1).peak))


def test_advice_that_cannot_be_found_is_the_command_that_finds_it(capfd):
    step = replace(TINY, model=ModelConfig(encoder="none"))
    assert "run glioma-dist plan --model.encoder none" in _advice_in_time(step, GIB, "none")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_cache_that_is_no_file_holds_no_answers(tmp_path, make):
    file = tmp_path / "glioma-dist" / "step_memory.json"
    file.parent.mkdir(exist_ok=True)
    make(file)
    assert answers.read("key") is None
    answers.write("key", {})


@pytest.mark.parametrize("is_clone", [True, False])
@pytest.mark.parametrize(("gpus", "changes"), [(1, {}), (4, {"spatial_parallel": 4}), (4, {"fsdp2": True})])
def test_the_command_of_a_plan_can_be_typed_in_a_clone_and_elsewhere(is_clone, gpus, changes, tmp_path, monkeypatch):
    """A shell runs it, with a program in place of accelerate that says what it was given."""
    level = {"name": "x", "size": "96x64", "fits": True, "bf16": True, "fsdp2": False, "spatial_parallel": 1}
    level |= {"activation_checkpointing": "selective", **changes}
    plan = PlanConfig((Size(96, 64),), ModelConfig("mit_tiny", norm="group", **OUTPUTS), batch_size=8, gpus=gpus)
    monkeypatch.chdir(REPOSITORY if is_clone else tmp_path)
    command = choice(plan, Size(96, 64), [level])["command"]
    for name, text in (("accelerate", 'printf "%s\\n" "$@"'), ("glioma-dist", f'{sys.executable} -m glioma_dist "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    typed = subprocess.run(["bash", "-euc", command], env=environment, capture_output=True, text=True, check=True)
    first, quiet, flag, file, *rest = typed.stdout.splitlines()
    assert (first, quiet, flag, Path(file).is_file()) == ("launch", "--quiet", "--config_file", True)
    assert Path(file).is_absolute() != is_clone
    program = rest.index("train.py" if is_clone else "train")
    launch_flags = ["--num_processes", "4"] if gpus > 1 else []
    assert rest[:program] == (launch_flags if is_clone else [*launch_flags, "-m", "glioma_dist"])
    config = parse(TrainConfig, rest[program + 1 :])
    assert (config.data.size, config.batch_size, config.model.norm) == (Size(96, 64), 8, "group")
    assert config.scale.spatial_parallel == level["spatial_parallel"]
    assert (config.model.classes, config.model.targets) == (OUTPUTS["classes"], OUTPUTS["targets"])


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([(0, "96x64")], " (batch 0: not one image of this size)"),
        (
            [(0, "none"), (1, "96x64")],
            " (batch 0: not one image of this size; largest size none: not even a small image)",
        ),
        ([(2, "96x64")], ""),
    ],
)
def test_where_nothing_fits_the_last_two_columns_are_explained(levels, words):
    rows = [{"largest_batch": batch, "largest_size": size} for batch, size in levels]
    told = "no level fits; the last two columns say what would"
    assert memory_plan.nothing_fits(rows) == told + words


@pytest.mark.parametrize("text", ["24GB", "24GiB", "1.5 GB", "900MiB"])
def test_bytes_are_the_same_number_in_every_flag_of_memory(text):
    flags = ["--size", "64x64", "--gpu-memory", text, "--memory-budget", text]
    assert parse(PlanConfig, flags).gpu_memory == text
    trained = parse(TrainConfig, ["--data.train", "x", "--scale.memory-budget", text])
    assert parse_memory(text) == trained.scale.budget_bytes


@pytest.mark.parametrize("text", ["24", "24G", "much", "0GiB", "-1GiB", "99999999TiB", "nanGiB"])
def test_a_memory_without_a_unit_is_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"^--gpu-memory .*for example 24GiB$") as refused:
        parse(PlanConfig, ["--size", "64x64", f"--gpu-memory={text}"])
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("changed", OUTPUTS)
def test_a_plan_is_not_answered_with_the_memory_of_another_number_of_outputs(changed):
    """Each level's answer is kept in the cache: the second question differs in the outputs alone."""
    one, several = (
        PlanConfig((Size(64, 64),), ModelConfig("mit_tiny", decoder_channels=TINY_CHANNELS, **outputs))
        for outputs in ({}, {changed: OUTPUTS[changed]})
    )
    assert memory_plan._key(one, Size(64, 64)) != memory_plan._key(several, Size(64, 64))


def test_outputs_are_counted_as_the_network_has_them():
    model = replace(TINY.model, **OUTPUTS)
    found, known = (count(replace(TINY, model=each), "none") for each in (model, TINY.model))
    of_weights = [sum(weight.nbytes for weight in UNet(each).parameters()) for each in (model, TINY.model)]
    assert found.parameters - known.parameters == of_weights[0] - of_weights[1] > 0
    logits = (model.num_outputs - 1) * TINY.size.width * TINY.size.height * 4
    assert model.num_outputs == 4
    assert found.peak - known.peak > logits


@pytest.mark.usefixtures("own_cache")
def test_an_answer_is_not_taken_from_other_code(monkeypatch):
    count(TINY, "full")
    monkeypatch.setattr(step_count, "estimate_unet_step", None)
    try:
        for other in ("other code", None):  # None: the code is in no file
            monkeypatch.setattr(answer_key, "code_fingerprint", lambda kinds, other=other: other)
            answer_key._code.cache_clear()
            with pytest.raises(TypeError, match="'NoneType' object is not callable"):
                count(TINY, "full")
    finally:
        answer_key._code.cache_clear()


def test_sides_are_padded_as_the_network_pads_them():
    """An image of 33x33 takes as much as one of 64x64."""
    small, padded = (replace(TINY, size=Size(side, side)) for side in (33, 64))
    assert planner.largest_batch(small, "none", GIB) == planner.largest_batch(padded, "none", GIB)
    assert planner.largest_size(small, "none", GIB) == planner.largest_size(padded, "none", GIB)


def test_ddp_holds_all_gradients_all_the_time():
    one, two = count(TINY, "none"), count(replace(TINY, num_devices=2), "none")
    assert two.gradients == pytest.approx(two.parameters, rel=0.02)  # buffers are counted with the parameters
    assert two.peak - one.peak == two.gradients - one.gradients


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("how", ["devices", "micro-batches"])
def test_the_peak_may_be_at_another_moment_where_gradients_are_held(level, how):
    """Against a count in which they are there from the beginning."""
    step = replace(TINY, model=ModelConfig("mit_b0"), size=Size(256, 192))
    held = {"num_devices": 2} if how == "devices" else {"num_micro_batches": 2}
    model, size, _ = step_count.model_of_one_device(step, level)

    def begin(_: StorageLedger) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    ledger, _ = memory_estimator.count_unet_step(model, step.loss, size, 1, step.bf16, begin=begin)
    largest = max(each.nbytes for each in model.parameters())  # is made before it is added
    found = count(replace(step, **held), level).peak
    if how == "micro-batches":
        found -= bytes_of_a_pixel(step.model) * size.width * size.height
    few = 2**12  # Adam's numbers of steps, which are counted as moments
    assert found - few <= ledger.peak <= found + largest


def test_auto_takes_the_quickest_that_fits():
    step = replace(TINY, size=Size(512, 384))
    none, encoder, full, smallest = (count(step, kind).peak for kind in LEVELS)
    assert [planner.resolve("auto", step, memory) for memory in (none, none - 1, encoder - 1)] == list(ON_DEVICE)
    host = count(step, "offload").host
    assert planner.resolve("auto", step, full, host) == "full"
    assert planner.resolve("auto", step, full - 1, host) == "offload"
    for free in (None, host - 1):  # not known, as beside a CPU, and too little
        with pytest.raises(InputError, match="and see what else uses the memory"):
            planner.resolve("auto", step, full - 1, free)
    with pytest.raises(
        InputError,
        match=r"512x384 on this device: .* with --scale.activation-checkpointing full are needed; there are .*: give",
    ):
        planner.resolve("auto", step, smallest // 3)
    assert planner.resolve("none", step, 0) == "none"  # what was asked for is not second-guessed


def test_host_memory_that_is_not_there_is_refused_in_one_line():
    step = replace(TINY, size=Size(512, 384))
    host = count(step, "offload").host
    assert planner.resolve("offload", step, 0, host) == "offload"
    with pytest.raises(InputError, match=r"offload: each device needs .* of host memory, and its share of .* is"):
        planner.resolve("offload", step, 0, host - 1)
    assert "\n" not in planner.advice(step, GIB / 2**10, host=host)
    assert all(count(step, level).host == 0 for level in ON_DEVICE)


class Unseen(HostMemory):
    """Memory that the ledger does not take for the device's."""

    def leave(self, source):
        with _disable_current_modes():
            return super().leave(source)

    def arrive(self, memory, target):
        with _disable_current_modes():
            return super().arrive(memory, target)


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_counted_is_what_real_tensors_take(level, in_backward):
    """Of the storages of a step on real tensors, which is computed by PyTorch's own engine and copies."""
    step = replace(TINY, size=Size(96, 64), optimizer_in_backward=in_backward)
    model = build_model(step.model, 0)[0]
    checkpoint_activations(model, level, CPU_TILE)
    compute_as_on_gpu(model)
    moved = offload_of(model)
    if moved is not None:
        moved.host = Unseen()

    def take(_):
        images = torch.zeros(1, 1, 64, 96, dtype=torch.uint8)
        return compute_gradients(model, images, images[:, 0], step.loss, nullcontext)

    found = count_step(model, nullcontext(), take, in_backward=in_backward)
    counted = step_count.count_at_size(step, level)
    assert counted.peak == pytest.approx(found.peak, rel=0.005)
    if moved is not None:
        assert counted.host == sum(map(len, moved.host.free())) > 0


def test_advice_never_offers_what_was_tried():
    step = replace(TINY, size=Size(512, 384), batch_size=8)
    assert "give --scale.activation-checkpointing selective" in planner.advice(step, 100 * GIB, tried="none")
    assert "give --scale.activation-checkpointing full" in planner.advice(step, 100 * GIB, tried="selective")
    half = count(replace(step, batch_size=4), "full").peak
    assert re.search(r"give --scale.activation-checkpointing full and --batch-size [345]$", planner.advice(step, half))
    assert "see what else uses the memory" in planner.advice(step, 100 * GIB, tried="full")


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation makes, fake ones included."""

    num_bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.num_bytes = max(self.num_bytes, leaf.untyped_storage().nbytes())
        return result


@pytest.mark.usefixtures("own_cache")
def test_no_attention_matrix_at_native_size():
    """The largest tensor of a step is a map of the decoder; one stage's attention matrix would be many times that."""
    size = Size(2592, 1952)
    step = replace(TINY, size=size, bf16=True)
    widest_map = size.width * size.height * 16 * 2  # the decoder's, 16 channels in bf16
    tokens, keys = size.width * size.height // 16, size.width * size.height // 1024
    for kind in LEVELS:
        with LargestTensor() as seen:
            count(step, kind)
        assert widest_map // 4 < seen.num_bytes <= widest_map < tokens * keys * 2 / 10


MIXED = CheckpointPlan.parse(
    "encoder input x2, attention x2, all; layers tiles x2, whole; "
    "decoder all whole x2, input whole, all tiles, input tiles, all whole"
)


@pytest.mark.parametrize(
    ("size", "kind"), [("512x384", "none"), ("640x512", "selective"), ("704x512", "full"), ("640x512", MIXED)], ids=str
)
def test_counted_is_what_a_process_grows_by(size, kind):
    """The peak resident memory above what the libraries and a small step had taken before."""
    model, size = ModelConfig(encoder="mit_b0"), Size.parse(size)
    (measured,) = run(measure_growth, model, size, kind)
    assert count(replace(TINY, model=model, size=size), kind).peak == pytest.approx(measured, rel=0.15)


def measure_growth(model_config: ModelConfig, size: Size, kind: str | CheckpointPlan) -> int:
    """Bytes by which the resident memory grows, at most, from before the model is built through two steps."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(MALLOPT_MMAP_THRESHOLD, 2**16)  # whatever is freed goes back at once: no gaps are counted
    take_steps(model_config, Size(64, 64), "none")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on: proc(5)
    take_steps(model_config, size, kind)
    return resident("VmHWM") - before


def take_steps(model_config: ModelConfig, size: Size, kind: str | CheckpointPlan) -> None:
    model = UNet(model_config)
    checkpoint_activations(model, kind)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        images = torch.zeros(1, 1, size.height, size.width, dtype=torch.uint8)
        segmentation_loss(
            "dice", model(normalise(images), torch.zeros(1, dtype=torch.int64)), images[:, 0]
        ).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def resident(what: str) -> int:
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.parametrize(("num_rows", "most"), [(2, 0.56), (4, 0.32)])
def test_kept_activations_are_shared_by_rows(num_rows, most):
    """At native height, 61 units, the strip of a process keeps little more than its share."""
    step = replace(TINY, model=ModelConfig(encoder="mit_b0"), size=Size(256, 1952), bf16=True)
    shared = replace(step, spatial_parallel=num_rows, num_devices=num_rows)
    kept = [count(each, "none").kept for each in (shared, step)]
    assert 1 / num_rows < kept[0] / kept[1] <= most
    halos, gathered = step_count.count_sent(shared, "none")
    assert 0 < halos < kept[0] / 20
    assert gathered > 0


@pytest.mark.parametrize(("num_moments", "momentum"), [(0, 0.0), (1, 0.9)])
@pytest.mark.parametrize("level", ["none", "full"])
def test_sgd_keeps_less_than_adam(monkeypatch, num_moments, momentum, level):
    """As counted with PyTorch's SGD in Adam's place."""
    step = replace(TINY, size=Size(250, 190))  # of which no formula is traced
    found = count(replace(step, num_moments=num_moments), level)
    sgd = partial(torch.optim.SGD, momentum=momentum)
    monkeypatch.setattr(memory_estimator, "count_step", partial(count_step, make_optimizer=sgd))
    counted = step_count.count_at_size(step, level)
    assert counted.peak <= found.peak <= 1.01 * counted.peak
    assert counted.optimizer == pytest.approx(found.optimizer, rel=1e-3)


def test_fsdp_shares_weights_gradients_and_moments():
    whole = count(replace(TINY, num_devices=4), "full")
    shared = count(replace(TINY, num_devices=4, shards=True), "full")
    assert (shared.parameters, shared.optimizer) == (whole.parameters // 4, whole.optimizer // 4)
    assert shared.momentary > whole.momentary  # a layer's weights are whole while they are needed


def test_what_strips_need_is_counted_with_the_tiles_of_a_gpu():
    asked = {"estimated_encoder": "mit_tiny", "estimated_size": Size(1024, 1024)}
    (row,) = estimated(SpatialParallelConfig(levels=("full",), spatial_parallel=(1,), **asked))
    step = replace(TINY, model=ModelConfig(encoder="mit_tiny"), size=Size(1024, 1024), bf16=True)
    of_gpu, of_cpu = (count(replace(step, tile_size=tiles), "full") for tiles in (largest_gpu_tile(), CPU_TILE))
    assert row["peak_gib"] == of_gpu.peak / GIB > of_cpu.peak / GIB
