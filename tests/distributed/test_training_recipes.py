"""Every optimizer and schedule: runs equal a plain loop of torch, resume with the same bits, and equal one process on
several: DDP, FSDP2, strips of images; also with a frozen encoder."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from engines import fsdp2
from helpers import rows, run, tiny_config
from test_processes import FP64, check_close
from test_processes import train_in_double as train_with_ddp
from torch import nn

from glioma_dist.config import ScaleConfig
from glioma_dist.config.recipe import LrSchedule, OptimizerName
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import MODEL, OPTIMIZER
from glioma_dist.model.unet import build_model
from glioma_dist.training import loop, preparation

SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}
RECIPES = {
    "adamw, cosine": {"optimizer": "adamw", "weight_decay": 0.1, "lr_schedule": "cosine", "warmup_steps": 2},
    "adam, poly": {"weight_decay": 0.01, "lr_schedule": "poly", "encoder_lr_factor": 0.1},
    "sgd, one-cycle": {**SGD, "weight_decay": 0.01, "lr_schedule": "one-cycle", "encoder_lr_factor": 0.5},
    "sgd without momentum": {**SGD, "nesterov": False, "momentum": 0.0},
    "frozen": {"optimizer": "adamw", "weight_decay": 0.1, "lr_schedule": "cosine", "freeze_encoder": True},
    "frozen, sgd": {**SGD, "freeze_encoder": True},
}


def test_the_recipes_have_every_optimizer_and_every_schedule():
    assert {each.get("optimizer", "adam") for each in RECIPES.values()} == set(get_args(OptimizerName))
    assert {each.get("lr_schedule", "constant") for each in RECIPES.values()} == set(get_args(LrSchedule))


@pytest.fixture(scope="module")
def weights(shards, tmp_path_factory, runtime):
    """A checkpoint to start from, whose running statistics are not those of a new network."""
    out = tmp_path_factory.mktemp("weights") / "run"
    loop.train(tiny_config(shards, out, max_steps=2, val=None), runtime)
    return out / "last"


def make_config(shards, out, weights, name: str, **changes):
    fields = {"max_steps": 4, "val": None, "batch_size": 2, "init": str(weights), **RECIPES[name], **changes}
    return tiny_config(shards, out, **fields)


def batches_of(config):
    """The batches of a run, as its own processes read them."""
    seen, step = [], loop.train_step

    def noting(training, batch, number):
        seen.append(batch)
        return step(training, batch, number)

    loop.train_step = noting
    try:
        train_with_ddp(config)
    finally:
        loop.train_step = step
    return seen


def plain_optimizer(model: nn.Module, config) -> torch.optim.Optimizer:
    """Torch's own, its groups written out: decayed are the weights of convolutions and linear layers."""
    groups = []
    for part, factor in ((model.encoder, config.encoder_lr_factor), (model.decoder, 1.0)):
        if part is model.encoder and config.freeze_encoder:
            continue
        layers = [each for each in part.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
        decayed = [each.weight for each in layers]
        others = [each for each in part.parameters() if all(each is not other for other in decayed)]
        groups += [
            {"params": decayed, "lr": config.lr * factor, "weight_decay": config.weight_decay},
            {"params": others, "lr": config.lr * factor, "weight_decay": 0.0},
        ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](groups)


def plain_schedule(optimizer: torch.optim.Optimizer, config):
    schedulers, steps = torch.optim.lr_scheduler, config.max_steps
    if config.lr_schedule == "constant":
        return schedulers.ConstantLR(optimizer, factor=1.0)
    if config.lr_schedule == "poly":
        return schedulers.PolynomialLR(optimizer, total_iters=steps, power=0.9)
    if config.lr_schedule == "one-cycle":
        return schedulers.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps + 1,
            pct_start=(round(0.3 * steps) + 1) / (steps + 1),
            final_div_factor=1e30,
            cycle_momentum=False,
        )
    if config.warmup_steps is None:
        return schedulers.CosineAnnealingLR(optimizer, T_max=steps)
    warmup = config.warmup_steps
    rise = schedulers.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    fall = schedulers.CosineAnnealingLR(optimizer, T_max=steps - warmup)
    return schedulers.SequentialLR(optimizer, [rise, fall], [warmup])


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # of PyTorch before 2.9, about its own schedule
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_equals_a_plain_loop_of_torch(shards, tmp_path, weights, name):
    config = make_config(shards, tmp_path / "run", weights, name)
    batches = batches_of(config)
    model = build_model(config.model, config.seed)[0].double().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = plain_optimizer(model, config)
    schedule = plain_schedule(optimizer, config)
    for batch in batches:
        if config.freeze_encoder:
            model.encoder.eval()
        logits = model(model.normalise(batch.images), batch.seeds)
        segmentation_loss(config.loss, logits, batch.masks).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    found = Checkpoint.read(config.out / "last").tensors(MODEL)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(found[key], tensor, rtol=FP64, atol=FP64, msg=lambda text, key=key: f"{key} {text}")
    moved = {key.partition(".")[0] for key, tensor in found.items() if not torch.equal(tensor, before[key])}
    assert moved == ({"decoder"} if config.freeze_encoder else {"encoder", "decoder"})


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_has_the_bits_of_one_that_was_not(shards, tmp_path, weights, runtime, name):
    """Its --max-steps grew, so --schedule-steps tells the schedule's length."""
    steps = {"schedule_steps": 4} if RECIPES[name].get("lr_schedule") else {}
    whole = make_config(shards, tmp_path / "whole", weights, name)
    loop.train(whole, runtime)
    moving = make_config(shards, tmp_path / "moving", weights, name, **steps)
    for end in (1, 3, 4):
        loop.train(replace(moving, max_steps=end), runtime)
    assert rows(moving.out) == rows(whole.out)
    assert ("lr" in rows(whole.out)[0]) == ("lr_schedule" in RECIPES[name])
    for file in (MODEL, OPTIMIZER):
        ours, theirs = (Checkpoint.read(each.out / "last").tensors(file) for each in (moving, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), file


def train_with_fsdp2(config) -> list[bool]:
    """Whether each trained parameter, and each frozen one, is spread."""
    from torch.distributed.tensor import DTensor

    from glioma_dist.distributed.context import DistributedContext

    build, prepare, spread = preparation.build_model, loop.prepare, []

    def telling(*arguments):
        training, position = prepare(*arguments)
        spread.extend(isinstance(each, DTensor) for each in training.model.parameters())
        return training, position

    preparation.build_model = lambda *given: (build(*given)[0].double(), [])
    loop.prepare = telling
    here = DistributedContext.start()
    with fsdp2(here):
        loop.train(config, here)
    return spread


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("engine", ["DDP", "FSDP2", "strips"])
def test_two_processes_equal_one_and_their_checkpoints_are_everybody_s(shards, tmp_path, weights, name, engine):
    """Two steps on two processes, the next two on one that resumes from there, in fp64."""
    config = make_config(shards, tmp_path / "one", weights, name, clip_norm=0.5)
    train_with_ddp(config)
    schedule = {"schedule_steps": config.max_steps} if config.lr_schedule != "constant" else {}
    moving = replace(config, out=tmp_path / "two", **schedule)
    scale = ScaleConfig(spatial_parallel=2, activation_checkpointing="full") if engine == "strips" else ScaleConfig()
    train = train_with_fsdp2 if engine == "FSDP2" else train_with_ddp
    spread = run(train, replace(moving, max_steps=2, scale=scale), num_processes=2)
    if engine == "FSDP2":
        assert [set(each) for each in spread] == [{True}] * 2
    train_with_ddp(moving)
    check_close(rows(moving.out), rows(config.out), FP64)
    ours, theirs = (Checkpoint.read(each.out / "last").tensors(MODEL) for each in (moving, config))
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=FP64, atol=FP64, msg=lambda text, key=key: f"{key} {text}")


def test_a_frozen_encoder_with_batch_norm_is_the_same_on_two_processes(shards, tmp_path):
    """Its running statistics stay those of the start, on every process and after a resume; the decoder's move."""
    fields = {"encoder": "mobilenet_v2", "norm": "batch", "val": None, "batch_size": 2}
    first = tiny_config(shards, tmp_path / "start", max_steps=1, **fields)
    train_with_ddp(first)
    init = str(first.out / "last")
    config = tiny_config(shards, tmp_path / "one", max_steps=3, freeze_encoder=True, init=init, **fields)
    train_with_ddp(config)
    moving = replace(config, out=tmp_path / "two")
    run(train_with_ddp, replace(moving, max_steps=2), num_processes=2)
    run(train_with_ddp, moving, num_processes=2)
    check_close(rows(moving.out), rows(config.out), FP64)
    start = build_model(config.model, config.seed)[0].double().state_dict()
    ours, theirs = (Checkpoint.read(each.out / "last").tensors(MODEL) for each in (moving, config))
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=FP64, atol=FP64, msg=lambda text, key=key: f"{key} {text}")
    for tensors in (ours, theirs):
        still = {key for key, tensor in tensors.items() if torch.equal(tensor, start[key])}
        assert {key for key in start if key.startswith("encoder.")} <= still
        assert any("running_mean" in key for key in still)
        assert not any("running_mean" in key for key in still if key.startswith("decoder."))


def test_another_horizon_is_refused_in_one_line(shards, tmp_path, weights, runtime):
    config = make_config(shards, tmp_path / "run", weights, "adam, poly")
    loop.train(replace(config, max_steps=2), runtime)
    with pytest.raises(
        InputError, match=r"falls over 2 steps .*poly.*, with these flags over 4; give --schedule-steps"
    ):
        loop.train(config, runtime)
    with pytest.raises(InputError, match=r"optimizer adam -> adamw"):
        loop.train(replace(config, max_steps=2, optimizer="adamw"), runtime)
