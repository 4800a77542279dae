"""--reproducible: weights, optimizer, average and rows of metrics have the same bits on 1, 2, 3 and 4 processes, with
any number of workers, and with a restart on another number of processes in between."""

import contextlib
import hashlib
import io
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hash_chain import hash_rows, write_chain
from helpers import draw_shards, rows, run, seal, tiny_config
from killing import kill_at
from torch import nn

from glioma_dist.config import ScaleConfig
from glioma_dist.config.verify import VerifyConfig
from glioma_dist.data.loader import own_slots
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import EMA, MODEL, OPTIMIZER, STATE
from glioma_dist.scale.checkpoint_plan import LEVEL_PLANS, CheckpointPlan
from glioma_dist.size import Size
from glioma_dist.training import loop
from glioma_dist.training.reproducible import (
    ARITHMETIC,
    BRANCHES,
    CPU_BRANCH,
    EXPONENTS,
    check_reproducible,
    cpu_branch,
    pinned_level,
)
from glioma_dist.training.step_hashes import KEPT, kept_folder, read_noted
from glioma_dist.training.verification import verify

FILES = (MODEL, OPTIMIZER, EMA)
RECIPES = {
    "adam": {"optimizer": "adam", "clip_norm": 0.5, "ema_decay": 0.5},
    "sgd": {"optimizer": "sgd", "max_steps": 3, "scale": ScaleConfig(activation_checkpointing="selective")},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "scale": ScaleConfig(activation_checkpointing="full")},
}


def config_of(shards, out, **changes):
    fields = {"norm": "group", "size": Size(32, 32), "batch_size": 5, "max_steps": 4, "eval_every": 2, **changes}
    return tiny_config(shards, out, reproducible=True, **fields)


def train_in_fp32(*configs) -> None:
    here = DistributedContext.start()
    for config in configs:
        loop.train(config, here)


def digest(config) -> tuple:
    """SHA-256 of all tensors of the last checkpoint; and what the run told of each step and validation."""
    found = hashlib.sha256()
    checkpoint = Checkpoint.read(config.out / "last")
    for file in FILES:
        if checkpoint.has(file):
            for name, tensor in sorted(checkpoint.tensors(file).items()):
                found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    # A run that is to end at another step is validated there, too.
    told = [row for row in rows(config.out) if "split" not in row or row["step"] % config.eval_every == 0]
    return found.hexdigest(), told, checkpoint.metadata[EXPONENTS]


def check_counts(config, folder, counts, moves=()) -> None:
    """One run with each number of processes, and one that moves: (processes, steps, workers)."""
    digests = {}
    for number in counts:
        own = replace(config, out=folder / str(number))
        run(train_in_fp32, own, num_processes=number)
        digests[number] = digest(own)
    moving = replace(config, out=folder / "moving")
    for number, steps, workers in moves:
        own = replace(moving, max_steps=steps, data=replace(config.data, workers=workers))
        run(train_in_fp32, own, num_processes=number)
    if moves:
        digests["moving"] = digest(moving)
    expected = digests[counts[0]]
    assert {name: found == expected for name, found in digests.items()} == dict.fromkeys(digests, True)
    assert Checkpoint.read(moving.out / "last" if moves else own.out / "last").step == config.max_steps


def verified(folder, has_computed: bool) -> str:
    """What `verify` prints in this process, in which MKL has computed before or not."""
    os.environ.pop(CPU_BRANCH, None)
    if has_computed:
        torch.ones(64, 64) @ torch.ones(64, 64)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        verify(VerifyConfig(str(folder), stretches=9), DistributedContext.start())
    return printed.getvalue()


@pytest.mark.equality(flag="--reproducible, a restart", encoder="mit_tiny", processes="1, 2, 3", kind="bits")
def test_a_run_on_one_two_or_three_processes_ends_with_the_same_bits(shards, tmp_path):
    """So does one that is killed and resumed on another number of processes, and one process can verify it."""
    config = config_of(shards, tmp_path, batch_size=6, keep_every=2, ema_decay=0.5, clip_norm=0.5)
    one, two, three, moving = (replace(config, out=tmp_path / name) for name in ("1", "2", "3", "moving"))
    run(train_in_fp32, one)  # in a process of its own: this one may have computed without MKL_CBWR before
    kill_at(3, two, moving, num_processes=2)
    run(train_in_fp32, three, moving, num_processes=3)
    expected = digest(one)
    assert [digest(each) == expected for each in (two, three, moving)] == [True] * 3
    noted = read_noted(one.out).steps
    assert [read_noted(each.out).steps == noted for each in (two, three, moving)] == [True] * 3
    record = json.loads((moving.out / "run.json").read_text())
    assert [len(each["processes"]) for each in record["starts"]] == [2, 3]
    (told,) = run(verified, moving.out, False)
    assert told.count("batches, losses and weights equal, bit for bit") == 2
    (told,) = run(verified, moving.out, True)  # as in a notebook
    if cpu_branch() in BRANCHES.values():
        assert told.count("not bits: MKL_CBWR AUTO -> OFF") == 2


@pytest.mark.equality(flag="--reproducible, {recipe}", encoder="mit_tiny", processes="1, 2, 3", kind="bits")
@pytest.mark.parametrize("recipe", RECIPES)
def test_bits_do_not_depend_on_the_processes(shards, tmp_path, recipe):
    """Shares of a batch of 5 are unequal."""
    config = config_of(shards, tmp_path, **RECIPES[recipe])
    check_counts(config, tmp_path, (1, 3), moves=((2, 1, 2), (1, config.max_steps, 0)))


def test_without_the_flag_they_do(shards, tmp_path):
    """Otherwise the tests above would show nothing."""
    config = replace(config_of(shards, tmp_path, batch_size=6), reproducible=False)
    for number in (1, 3):
        run(train_in_fp32, replace(config, out=tmp_path / str(number)), num_processes=number)
    weights = [Checkpoint.read(tmp_path / str(number) / "last").tensors(MODEL) for number in (1, 3)]
    assert any(not torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [12, 10])
def test_the_whole_proof(shards, tmp_path, batch_size):
    """50 steps on 1 to 4 processes, and a run that is killed, ended and resumed on all of these numbers."""
    train = (str(draw_shards(tmp_path / "train", range(26))),)
    fields = {"batch_size": batch_size, "max_steps": 50, "eval_every": 25, "ema_decay": 0.9}
    config = config_of(shards, tmp_path, train=train, **fields)
    kill_at(8, replace(config, out=tmp_path / "moving", save_every=3), num_processes=3)
    assert (tmp_path / "moving" / "last").is_dir()
    check_counts(config, tmp_path, (1, 2, 3, 4), moves=((2, 11, 2), (4, 23, 0), (3, 37, 0), (1, 50, 2)))


def test_the_gradient_is_that_of_training_without_the_flag(shards, tmp_path):
    """The first step, by its weights: SGD moves them by the gradient."""
    config = config_of(shards, tmp_path, optimizer="sgd", momentum=0.0, max_steps=1, lr=1.0, val=None)
    pair = [replace(config, out=tmp_path / str(flag), reproducible=flag) for flag in (True, False)]
    for each in pair:
        loop.train(each)
    ours, theirs = (Checkpoint.read(each.out / "last").tensors(MODEL) for each in pair)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)
    (row,), (other,) = (rows(each.out) for each in pair)
    assert row["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_a_run_that_was_computed_in_another_way_is_not_resumed(shards, tmp_path):
    config = config_of(shards, tmp_path / "run", max_steps=1, val=None)
    loop.train(config)
    assert Checkpoint.read(config.out / "last").metadata[ARITHMETIC]["threads"] == 1
    longer = replace(config, max_steps=2)
    with pytest.raises(InputError, match="activation_checkpointing none -> full"):
        loop.train(replace(longer, scale=ScaleConfig(activation_checkpointing="full")))
    with pytest.raises(InputError, match="reproducible True -> False"):
        loop.train(replace(longer, reproducible=False))
    loop.train(replace(longer, scale=ScaleConfig(activation_checkpointing="auto")))


def test_threads_are_as_before_after_a_run(shards, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loop.train(config_of(shards, tmp_path / "run", max_steps=1, val=None))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.equality(flag="--reproducible, {flag}", encoder="{encoder}", processes=1, kind="refused")
@pytest.mark.parametrize(
    ("flag", "encoder", "changes", "told"),
    [
        ("--model.norm batch", "mit_tiny", {"norm": "batch"}, "give --model.norm group"),
        ("--scale.spatial-parallel", "mit_tiny", {"scale": ScaleConfig(spatial_parallel=2)}, "spatial-parallel"),
        ("--scale.compile", "mit_tiny", {"scale": ScaleConfig(compile=True)}, "--scale.compile"),
        ("--scale.cudnn-benchmark", "mit_tiny", {"scale": ScaleConfig(cudnn_benchmark=True)}, "cudnn-benchmark"),
        ("--model.encoder-norm batch", "mobilenet_v2", {}, "--model.encoder-norm frozen"),
    ],
)
def test_what_cannot_be_had_is_one_line(shards, tmp_path, flag, encoder, changes, told):
    with pytest.raises(InputError, match=told) as refused:
        loop.train(config_of(shards, tmp_path / "run", encoder=encoder, **changes))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("--reproducible")
    assert len(str(refused.value)) <= 500


@pytest.mark.equality(flag="--reproducible, {launch}", encoder="mit_tiny", processes="1", kind="refused")
@pytest.mark.parametrize("launch", ["FSDP2", "fp16"])
def test_launches_that_cannot_be_had_are_one_line(shards, tmp_path, launch):
    accelerator = SimpleNamespace(is_fsdp2=launch == "FSDP2", scaler=object() if launch == "fp16" else None)
    with pytest.raises(InputError, match=rf"--reproducible cannot be combined with {launch}.*launch with"):
        check_reproducible(config_of(shards, tmp_path), SimpleNamespace(accelerator=accelerator), nn.Identity())


def test_another_machine_verifies_a_stretch_up_to_rounding(shards, tmp_path, runtime, capsys):
    """The kept checkpoints are said to be of another processor, with hashes that fit."""
    config = config_of(shards, tmp_path / "run", val=None, keep_every=2, batch_size=2)
    loop.train(config, runtime)
    found = hash_rows(config.out)
    for row in found:
        if KEPT in row:
            folder = kept_folder(config.out, row["step"])
            state = json.loads((folder / STATE).read_text())
            state[ARITHMETIC]["instructions"] = "ANOTHER"
            (folder / STATE).unlink()  # it is the file of last/, too
            (folder / STATE).write_text(json.dumps(state))
            seal(folder)
            row[KEPT] = Checkpoint.read(folder).manifest.identity
    write_chain(config.out, found)
    shutil.rmtree(config.out / "last")
    capsys.readouterr()
    verify(VerifyConfig(str(config.out), stretches=9), runtime)
    assert capsys.readouterr().out.count("not bits: instructions ANOTHER -> ") == 2


@pytest.mark.parametrize(("number", "is_taken"), [(9, True), (123_456, False)])
def test_the_plan_of_a_checkpoint_is_taken_unless_it_has_more_units_than_a_network(shards, tmp_path, number, is_taken):
    config = config_of(shards, tmp_path, scale=ScaleConfig(memory_budget="8GiB"))
    plan = CheckpointPlan(("input",) * number, ("tiles",), LEVEL_PLANS["full"].decoder)
    for text in (str(plan), str(plan).replace(f"x{number}", f"x {number:_}")):
        checkpoint = SimpleNamespace(metadata={ARITHMETIC: {"activation_checkpointing": text}})
        assert pinned_level(config, checkpoint) == (plan if is_taken and text == str(plan) else None)


def test_shares_of_a_batch_cover_it_once():
    for batch_size in range(1, 14):
        for number in range(1, batch_size + 1):
            shares = [own_slots(batch_size, rank, number) for rank in range(number)]
            assert [slot for share in shares for slot in share] == list(range(batch_size))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1 <= min(map(len, shares))
