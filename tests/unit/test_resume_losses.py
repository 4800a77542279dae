"""A run that was stopped and resumed has the bits of one that was not: with every registered loss and one's own, every
optimizer with every schedule, the moving average and micro-batches."""

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from helpers import draw_labelled, rows, tiny_config, write_shards

from glioma_dist.config import ScaleConfig
from glioma_dist.config.recipe import LrSchedule, OptimizerName
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.registry import losses
from glioma_dist.training.loop import train

CLASSES = ("live", "dead")
OPTIMIZERS = [(each, schedule) for each in get_args(OptimizerName) for schedule in get_args(LrSchedule)]
CASES = [(losses.find(name).name, classes) for name in losses.names() for classes in ((), CLASSES)]
CASES = [case for case in CASES if losses.find(case[0]).classes != ("several" if not case[1] else "one")]
CASES += [("loss_helpers_own:squares", ()), ("dice+0.5*loss_helpers_own:squares", ())]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    for name, classes in (("one", ()), ("several", CLASSES)):
        samples = [draw_labelled(number, 48, 48, num_classes=max(1, len(classes))) for number in range(5)]
        write_shards(folder / name / "train", samples, classes=classes)
    return folder


def check_resumed(config, runtime, **changes) -> None:
    """Four steps at once, and two and two."""
    train(config, runtime)
    parts = replace(config, out=config.out.with_name("parts"), **changes)
    train(replace(parts, max_steps=2), runtime)
    train(parts, runtime)
    assert [row["step"] for row in rows(config.out)] == [1, 2, 3, 4]
    assert rows(parts.out) == rows(config.out)
    files = json.loads((config.out / "last" / "manifest.json").read_text())["files"]
    names = [name for name in files if name.endswith(".safetensors")]
    assert len(names) >= 2
    for name in names:
        whole, resumed = (Checkpoint.read(each.out / "last").tensors(name) for each in (config, parts))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name


def make_config(folders, out, number: int, classes=(), **changes):
    """The odd ones with the moving average, every third with micro-batches."""
    fields = {
        "norm": "group",
        "batch_size": 2,
        "max_steps": 4,
        "val": None,
        "size": "32x32",
        "classes": classes,
        **changes,
    }
    fields |= {"ema_decay": 0.9} if number % 2 else {}
    fields |= {"scale": ScaleConfig(gradient_accumulation=2)} if number % 3 == 0 else {}
    fields["size"] = type(tiny_config(folders, out).data.size).parse(fields["size"])
    return tiny_config(folders / ("several" if classes else "one"), out, **fields)


@pytest.mark.parametrize(("number", "case"), list(enumerate(CASES)), ids=[f"{a}, {len(b) or 1}" for a, b in CASES])
def test_every_loss(number, case, folders, tmp_path, runtime):
    check_resumed(make_config(folders, tmp_path / "whole", number, case[1], loss=case[0]), runtime)


@pytest.mark.parametrize(("number", "case"), list(enumerate(OPTIMIZERS)), ids=map(", ".join, OPTIMIZERS))
def test_every_optimizer_with_every_schedule(number, case, folders, tmp_path, runtime):
    optimizer, schedule = case
    config = make_config(folders, tmp_path / "whole", number, optimizer=optimizer, lr_schedule=schedule)
    check_resumed(config, runtime, **({} if schedule == "constant" else {"schedule_steps": 4}))
