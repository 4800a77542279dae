"""Classes, ignored pixels and second targets on two processes: DDP, FSDP2 and strips, at each level of activation
checkpointing, equal a plain loop of torch that has whole batches and its own formulas of the losses."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from engines import fsdp2
from helpers import draw_labelled, rows, run, tiny_config, write_shards
from torch.nn import functional

from glioma_dist.config import ScaleConfig
from glioma_dist.data.sample import IGNORE
from glioma_dist.model.checkpoint import MODEL, Checkpoint
from glioma_dist.model.unet import build_model
from glioma_dist.training import loop, preparation

CLASSES = ("live", "dead")
LABELS = {
    "classes": {"classes": CLASSES, "loss": "ce"},
    "boundary": {"targets": ("mask", "boundary"), "loss": "bce", "target_weight": 0.5},
    "classes, distance": {"classes": CLASSES, "targets": ("mask", "distance"), "loss": "0.5*ce", "target_weight": 2.0},
}
LEVELS = ("none", "selective", "full")
STEPS, FP64 = 2, 1e-9


def draw(number: int, num_classes: int):
    """Nobody labelled the first image, the upper half of the second, and a block of the third; all of the fourth is
    labelled: so neither processes nor the strips of an image have as many ignored pixels."""
    sample = draw_labelled(number, num_classes=num_classes, has_instances=True, has_ignore=number % 4 == 2)
    mask = sample.mask.copy()
    mask[: {0: len(mask), 1: len(mask) // 2}.get(number % 4, 0)] = IGNORE
    return replace(sample, mask=mask, instances=np.where(mask == IGNORE, 0, sample.instances).astype(np.uint16))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    for name, classes in (("one", ()), ("several", CLASSES)):
        samples = [draw(number, max(1, len(classes))) for number in range(4)]
        write_shards(folder / name / "train", samples, classes=classes)
    return folder


def make_config(folders, out, name: str, **changes):
    how = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "max_steps": STEPS, "val": None, "transform": "resize"}
    shards = folders / ("several" if "classes" in LABELS[name] else "one")
    return tiny_config(shards, out, batch_size=2, **how, **LABELS[name], **changes)


def train_in_double(engine: str, *configs) -> list[list[int]]:
    """Train one run after the other in fp64. Returns the numbers of ignored pixels of this process's batches."""
    from glioma_dist.distributed.context import DistributedContext

    build, step, ignored = preparation.build_model, loop.train_step, []

    def noting(training, batch, number):
        ignored[-1].append(int((batch.masks == IGNORE).sum()))
        return step(training, batch, number)

    preparation.build_model = lambda *given: (build(*given)[0].double(), [])
    loop.train_step = noting
    here = DistributedContext.start()
    with fsdp2(here) if engine == "FSDP2" else nullcontext():
        for config in configs:
            ignored.append([])
            loop.train(config, here)
    return ignored


@pytest.fixture(scope="module")
def plain(folders, tmp_path_factory):
    """Of each kind of labels the losses and the weights at the end of a plain loop over whole batches."""
    found = {}
    for name in LABELS:
        config = make_config(folders, tmp_path_factory.mktemp("plain") / "run", name)
        batches = batches_of(config)
        model = build_model(config.model, config.seed)[0].double().train()
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=config.lr), []
        for batch in batches:
            logits = model(model.normalise(batch.images), batch.seeds)
            images = zip(logits, batch.masks, strict=True)
            loss = sum(loss_of_an_image(name, *each) for each in images) / len(batch.masks)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        found[name] = losses, model.state_dict()
    return found


def batches_of(config) -> list:
    """The batches of a run on one process."""
    batches, step = [], loop.train_step

    def noting(training, batch, number):
        batches.append(batch)
        return step(training, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", noting)
        loop.train(config)
    return batches


def loss_of_an_image(name: str, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Of an image alone, from its labelled pixels alone. logits: (outputs, H, W); masks: (H, W) or (2, H, W)."""
    mask = masks if name == "classes" else masks[0]
    known = mask != IGNORE
    if not known.any():
        return 0 * logits.sum()
    of_mask, reference = logits[:, known], mask[known]
    if name == "classes":
        return functional.cross_entropy(of_mask.T, reference.long())
    target = masks[1][known].double()
    if name == "boundary":
        pairs = ((of_mask[0], reference.double()), (of_mask[1], target))
        own, second = (-torch.where(truth > 0, p.sigmoid(), 1 - p.sigmoid()).log().mean() for p, truth in pairs)
        return own + 0.5 * second
    distance = functional.l1_loss(of_mask[3].sigmoid(), target / 254)
    return 0.5 * functional.cross_entropy(of_mask[:3].T, reference.long()) + 2 * distance


@pytest.mark.parametrize("engine", ["DDP", "FSDP2", "strips"])
def test_every_engine_equals_a_plain_loop_at_every_level(folders, tmp_path, plain, engine):
    cases = {(name, level): tmp_path / f"{name} {level}" for name in LABELS for level in LEVELS}
    parts = 2 if engine == "strips" else 1
    configs = [
        make_config(folders, out, name, scale=ScaleConfig(activation_checkpointing=level, spatial_parallel=parts))
        for (name, level), out in cases.items()
    ]
    ignored = run(train_in_double, engine, *configs, num_processes=2)
    assert all(one != other for pair in zip(*ignored, strict=True) for one, other in zip(*pair, strict=True))
    for (name, _), out in cases.items():
        losses, state = plain[name]
        assert [row["loss"] for row in rows(out)] == pytest.approx(losses, rel=FP64), out.name
        found = Checkpoint.read(out / "last").tensors(MODEL)
        assert found.keys() == state.keys()
        for key, tensor in state.items():
            told = f"{out.name} {key}"
            torch.testing.assert_close(
                found[key], tensor, rtol=FP64, atol=FP64, msg=lambda text, told=told: f"{told} {text}"
            )
