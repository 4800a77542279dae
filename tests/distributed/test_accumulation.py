"""Gradient accumulation and the moving average of the weights on several processes: with DDP, FSDP2 and spatial
parallelism, two processes with micro-batches equal one process with the whole batch, in fp64, to 1e-9."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from engines import fsdp2
from fp64 import train_in_fp64
from helpers import rows, run, tiny_config

from glioma_dist.config import ScaleConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import EMA, MODEL, OPTIMIZER
from glioma_dist.training import loop

FP64 = 1e-9
NUMBERS = (1, 2, 4)
"""Of micro-batches in which each process computes its images."""
ENGINES = {"DDP": 1, "FSDP2": 1, "spatial parallel": 2}
"""Processes that share an image."""
FILES = (MODEL, EMA, OPTIMIZER)
SCATTER = ("reduce_scatter_single", "reduce_scatter_tensor")
"""What FSDP2 of one version of PyTorch or another sends gradients by."""


@contextmanager
def engine_of(name: str, here: DistributedContext) -> Iterator[None]:
    with fsdp2(here) if name == "FSDP2" else nullcontext():
        yield


def train_each(engine: str, *configs) -> None:
    """Train one run after the other in fp64."""
    here = DistributedContext.start()
    with pytest.MonkeyPatch.context() as patch, engine_of(engine, here):
        train_in_fp64(patch)
        for config in configs:
            loop.train(config, here)


def check_equal(ours, theirs) -> None:
    """Losses of all steps, and all tensors of the last checkpoint."""
    found, expected = (rows(each.out) for each in (ours, theirs))
    assert [(row["step"], row.get("split")) for row in found] == [(row["step"], row.get("split")) for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=FP64)
    for file in FILES:
        tensors, plain = (Checkpoint.read(each.out / "last").tensors(file) for each in (ours, theirs))
        assert tensors.keys() == plain.keys()
        for name, tensor in plain.items():
            if not name.endswith("/exp_avg_sq"):  # of squares, and so of a smaller size
                torch.testing.assert_close(tensors[name], tensor, rtol=FP64, atol=FP64)


@pytest.fixture(scope="module")
def plain(shards, tmp_path_factory):
    """The run of one process with whole batches: validated after its second and its third step."""
    config = tiny_config(
        shards,
        tmp_path_factory.mktemp("plain") / "run",
        norm="group",
        ema_decay=0.5,
        batch_size=8,
        max_steps=3,
        eval_every=2,
        clip_norm=0.5,
    )
    with pytest.MonkeyPatch.context() as patch:
        train_in_fp64(patch)
        loop.train(config, DistributedContext.start())
    return config


@pytest.mark.equality(flag="{engine}, micro-batches, EMA", encoder="mit_tiny", processes=2, kind="1e-9")
@pytest.mark.parametrize("engine", ENGINES)
def test_micro_batches_on_two_processes_equal_the_batch_of_one(plain, tmp_path, engine):
    scales = [ScaleConfig(gradient_accumulation=number, spatial_parallel=ENGINES[engine]) for number in NUMBERS]
    configs = [replace(plain, out=tmp_path / str(each.gradient_accumulation), scale=each) for each in scales]
    run(train_each, engine, *configs, num_processes=2)
    for config in configs:
        check_equal(config, plain)


def test_a_run_moves_between_engines_and_numbers_of_micro_batches(plain, tmp_path):
    """One step with FSDP2 in two parts, one with DDP in four, one on one process in three."""
    moving = replace(plain, out=tmp_path / "moving")
    for engine, steps, number, num_processes in (("FSDP2", 1, 2, 2), ("DDP", 2, 4, 2), ("one", 3, 3, 1)):
        config = replace(moving, max_steps=steps, scale=ScaleConfig(gradient_accumulation=number))
        run(train_each, engine, config, num_processes=num_processes)
    ours, theirs = ([row for row in rows(each.out) if "split" not in row] for each in (moving, plain))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=FP64)
    for file in (MODEL, EMA):
        found, expected = (Checkpoint.read(each.out / "last").tensors(file) for each in (moving, plain))
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=FP64, atol=FP64)


def train_in_fp32(engine: str, *configs) -> None:
    here = DistributedContext.start()
    with engine_of(engine, here):
        for config in configs:
            loop.train(config, here)


@pytest.mark.equality(flag="{engine}, restart", encoder="mit_tiny", processes=2, kind="bits")
@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
def test_a_restarted_run_ends_with_the_same_bits(shards, tmp_path, engine):
    """With a validation before the restart, after which nothing of the average may be left in the weights."""
    scale = ScaleConfig(gradient_accumulation=2)
    config = tiny_config(
        shards, tmp_path / "whole", norm="group", ema_decay=0.5, max_steps=3, eval_every=1, scale=scale
    )
    restarted = replace(config, out=tmp_path / "restarted")
    run(train_in_fp32, engine, config, replace(restarted, max_steps=2), num_processes=2)
    run(train_in_fp32, engine, restarted, num_processes=2)
    assert rows(restarted.out) == rows(config.out)
    for file in FILES:
        whole, other = (Checkpoint.read(each.out / "last").tensors(file) for each in (config, restarted))
        assert whole.keys() == other.keys()
        assert [name for name, tensor in whole.items() if not torch.equal(tensor, other[name])] == []


def train_with_gathered_weights(config, keep_gathered: bool) -> None:
    """Under FSDP2, with weights that stay gathered after a forward pass or not (fsdp_reshard_after_forward)."""
    from accelerate.state import AcceleratorState

    here = DistributedContext.start()
    with pytest.MonkeyPatch.context() as patch, fsdp2(here):
        train_in_fp64(patch)
        AcceleratorState._shared_state["fsdp_plugin"].reshard_after_forward = not keep_gathered
        loop.train(config, here)


def test_weights_that_fsdp2_keeps_gathered_are_gathered_again_after_a_validation(plain, tmp_path):
    config = replace(plain, out=tmp_path / "gathered")
    run(train_with_gathered_weights, config, True, num_processes=2)
    check_equal(config, plain)


def sent_in_a_step(engine: str, config) -> dict[int, int]:
    """By the number of micro-batches: how often gradients are sent in one step."""
    here, calls, counts = DistributedContext.start(), [], {}
    prepare = loop.prepare

    def noting(scatter: Callable) -> Callable:
        def note(*given, **named):
            calls.append("scattered")
            return scatter(*given, **named)

        return note

    def send(_, bucket):
        calls.append("reduced")
        sent = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return sent.then(lambda done: done.value()[0] / here.num_processes)

    def watched(*given):
        trainer, state = prepare(*given)
        if engine == "DDP":
            trainer.model.register_comm_hook(None, send)
        return trainer, state

    with pytest.MonkeyPatch.context() as patch, engine_of(engine, here):
        patch.setattr(loop, "prepare", watched)
        for name in SCATTER:
            if hasattr(torch.distributed, name):
                patch.setattr(torch.distributed, name, noting(getattr(torch.distributed, name)))
        for number in NUMBERS:
            calls.clear()
            scale = ScaleConfig(gradient_accumulation=number)
            loop.train(replace(config, out=config.out / str(number), scale=scale), here)
            counts[number] = len(calls)
    return counts


@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
def test_gradients_are_sent_once_a_step(shards, tmp_path, engine):
    config = tiny_config(shards, tmp_path, norm="group", batch_size=8, max_steps=1, val=None)
    for counts in run(sent_in_a_step, engine, config, num_processes=2):
        assert counts[1] > 0
        assert counts[2] == counts[4] == counts[1]


def refuse(config) -> str:
    with pytest.raises(InputError) as refused:
        loop.train(config, DistributedContext.start())
    return str(refused.value)


def test_a_process_that_has_too_few_images_refuses(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", norm="group", scale=ScaleConfig(gradient_accumulation=4))
    for said in run(refuse, config, num_processes=2):
        assert "a process has 2 images of a batch; give --scale.gradient-accumulation 2 or less" in said
